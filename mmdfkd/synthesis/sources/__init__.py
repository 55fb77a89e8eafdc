"""Sources of synthetic images, one a file."""

from .base import SyntheticSource
from .dataset import DatasetSource
from .folder import FolderSource
from .generated import GeneratorSource
from .generator_presets import PresetGeneratorSource
from .layout_inversion import LayoutInversionSource
from .mixture import MixtureSource
from .pixel_inversion import PixelInversionSource
from .pooled import PooledSource
from .refined import RefinedSource
from .rendered import RenderedSource
from .replay import ReplaySource

__all__ = [
    'DatasetSource',
    'FolderSource',
    'GeneratorSource',
    'LayoutInversionSource',
    'MixtureSource',
    'PixelInversionSource',
    'PooledSource',
    'PresetGeneratorSource',
    'RefinedSource',
    'RenderedSource',
    'ReplaySource',
    'SyntheticSource',
]
