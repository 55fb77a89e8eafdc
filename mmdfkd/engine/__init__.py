"""Hooks and optimiser constructors of a run."""

from .hooks import DataAuditHook, DistillHook, OverwriteHook, StudentExportHook
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = [
    'DataAuditHook',
    'DistillHook',
    'LayerDecayOptimWrapperConstructor',
    'OverwriteHook',
    'StudentExportHook',
]
