"""Sources of synthetic images, one a file."""

from .base import SyntheticSource
from .dataset import DatasetSource
from .generated import GeneratorSource
from .generator_presets import PresetGeneratorSource
from .layout_inversion import LayoutInversionSource
from .mixture import MixtureSource
from .pooled import PooledSource
from .refined import RefinedSource
from .rendered import RenderedSource

__all__ = [
    'DatasetSource',
    'GeneratorSource',
    'LayoutInversionSource',
    'MixtureSource',
    'PooledSource',
    'PresetGeneratorSource',
    'RefinedSource',
    'RenderedSource',
    'SyntheticSource',
]
