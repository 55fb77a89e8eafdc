"""Where samples come from: no file is opened here."""

from .renderers import NoiseRenderer, ProceduralRenderer
from .samplers import GlobalIndexSampler
from .seeded import SeededDataset
from .synthetic import SyntheticDataset

__all__ = [
    'GlobalIndexSampler',
    'NoiseRenderer',
    'ProceduralRenderer',
    'SeededDataset',
    'SyntheticDataset',
]
