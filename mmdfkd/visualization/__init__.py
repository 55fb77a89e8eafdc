"""Pictures, and the report of a run."""

from .attention import attention_overlay
from .colours import class_colour
from .curves import draw_curves
from .draw import caption, draw_boxes, fit, tile
from .failures import failure_gallery
from .folder import folder_grid
from .grids import annotated_grid, comparison_grid, panel
from .report import save_image, write_report
from .synthetic import attention_of, synthetic_grid

__all__ = [
    'annotated_grid',
    'attention_of',
    'attention_overlay',
    'caption',
    'class_colour',
    'comparison_grid',
    'draw_boxes',
    'draw_curves',
    'failure_gallery',
    'fit',
    'folder_grid',
    'panel',
    'save_image',
    'synthetic_grid',
    'tile',
    'write_report',
]
