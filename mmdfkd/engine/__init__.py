"""Hooks and optimiser constructors of a run."""

from .hooks import DataAuditHook, DistillHook, StudentExportHook
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = ['DataAuditHook', 'DistillHook', 'LayerDecayOptimWrapperConstructor', 'StudentExportHook']
