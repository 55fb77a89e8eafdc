"""Where samples come from: no file is opened here."""

from .renderers import NoiseRenderer, ProceduralRenderer
from .samplers import GlobalIndexSampler
from .synthetic import SyntheticDataset

__all__ = ['GlobalIndexSampler', 'NoiseRenderer', 'ProceduralRenderer', 'SyntheticDataset']
