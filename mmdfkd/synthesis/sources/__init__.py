"""Sources of synthetic images, one a file."""

from .base import SyntheticSource
from .dataset import DatasetSource
from .layout_inversion import LayoutInversionSource
from .pooled import PooledSource
from .refined import RefinedSource
from .rendered import RenderedSource

__all__ = [
    'DatasetSource',
    'LayoutInversionSource',
    'PooledSource',
    'RefinedSource',
    'RenderedSource',
    'SyntheticSource',
]
