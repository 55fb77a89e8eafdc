"""Students made from their teacher: their config, and their first weights."""

from .inherit import check_image_count, heir_of, inherit
from .recipe import recipe_of
from .report import InheritanceReport
from .shrink import shrink_config

__all__ = [
    'InheritanceReport',
    'check_image_count',
    'heir_of',
    'inherit',
    'recipe_of',
    'shrink_config',
]
