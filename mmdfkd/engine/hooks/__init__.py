from .audit import DataAuditHook
from .distill import DistillHook
from .export import StudentExportHook
from .features_first import FeaturesFirstHook
from .freeze import FreezeScheduleHook
from .image_quality import SyntheticQualityHook
from .overwrite import OverwriteHook
from .start_average import StartAverageHook
from .student_ema import StudentEMAHook
from .synthetic_vis import SyntheticVisHook
from .teacher_passes import TeacherPassesHook

__all__ = [
    'DataAuditHook',
    'DistillHook',
    'FeaturesFirstHook',
    'FreezeScheduleHook',
    'OverwriteHook',
    'StartAverageHook',
    'StudentEMAHook',
    'StudentExportHook',
    'SyntheticQualityHook',
    'SyntheticVisHook',
    'TeacherPassesHook',
]
