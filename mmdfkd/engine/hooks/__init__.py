from .audit import DataAuditHook
from .distill import DistillHook
from .export import StudentExportHook

__all__ = ['DataAuditHook', 'DistillHook', 'StudentExportHook']
