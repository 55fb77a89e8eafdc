"""Hooks and optimiser constructors of a run."""

from .hooks import (
    DataAuditHook,
    DistillHook,
    FeaturesFirstHook,
    OverwriteHook,
    StudentExportHook,
    SyntheticQualityHook,
    SyntheticVisHook,
)
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = [
    'DataAuditHook',
    'DistillHook',
    'FeaturesFirstHook',
    'LayerDecayOptimWrapperConstructor',
    'OverwriteHook',
    'StudentExportHook',
    'SyntheticQualityHook',
    'SyntheticVisHook',
]
