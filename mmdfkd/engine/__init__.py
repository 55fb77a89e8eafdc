"""Hooks and optimiser constructors of a run."""

from .distributed import DistributedDistiller
from .hooks import (
    DataAuditHook,
    DistillHook,
    FeaturesFirstHook,
    FreezeScheduleHook,
    OverwriteHook,
    StudentEMAHook,
    StudentExportHook,
    SyntheticQualityHook,
    SyntheticVisHook,
    TeacherPassesHook,
)
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = [
    'DataAuditHook',
    'DistillHook',
    'DistributedDistiller',
    'FeaturesFirstHook',
    'FreezeScheduleHook',
    'LayerDecayOptimWrapperConstructor',
    'OverwriteHook',
    'StudentEMAHook',
    'StudentExportHook',
    'SyntheticQualityHook',
    'SyntheticVisHook',
    'TeacherPassesHook',
]
