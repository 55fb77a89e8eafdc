"""Sources of synthetic images, one a file."""

from .base import SyntheticSource
from .pooled import PooledSource
from .refined import RefinedSource
from .rendered import RenderedSource

__all__ = ['PooledSource', 'RefinedSource', 'RenderedSource', 'SyntheticSource']
