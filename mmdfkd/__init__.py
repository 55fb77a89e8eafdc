"""Data-free knowledge distillation for Vision Transformers on the OpenMMLab toolboxes."""

from .utils.compatibility import warn_untested
from .utils.torchvision_ops import ensure_nms_schema
from .version import __version__

# Before anything imports torchvision: a mismatched build would fail with `torchvision::nms`.
ensure_nms_schema()
warn_untested()

__all__ = ['__version__']
