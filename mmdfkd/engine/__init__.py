"""Hooks and optimiser constructors of a run."""

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
