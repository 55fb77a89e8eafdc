from .audit import DataAuditHook
from .distill import DistillHook
from .export import StudentExportHook
from .features_first import FeaturesFirstHook
from .image_quality import SyntheticQualityHook
from .overwrite import OverwriteHook
from .synthetic_vis import SyntheticVisHook

__all__ = [
    'DataAuditHook',
    'DistillHook',
    'FeaturesFirstHook',
    'OverwriteHook',
    'StudentExportHook',
    'SyntheticQualityHook',
    'SyntheticVisHook',
]
