"""Pictures, and the report of a run."""

from .colours import class_colour
from .curves import draw_curves
from .draw import caption, draw_boxes, fit, tile
from .failures import failure_gallery
from .grids import annotated_grid, comparison_grid, panel
from .report import save_image, write_report

__all__ = [
    'annotated_grid',
    'caption',
    'class_colour',
    'comparison_grid',
    'draw_boxes',
    'draw_curves',
    'failure_gallery',
    'fit',
    'panel',
    'save_image',
    'tile',
    'write_report',
]
