"""Sources of synthetic images, one a file."""

from .base import SyntheticSource
from .dataset import DatasetSource
from .pooled import PooledSource
from .refined import RefinedSource
from .rendered import RenderedSource

__all__ = ['DatasetSource', 'PooledSource', 'RefinedSource', 'RenderedSource', 'SyntheticSource']
