from .audit import DataAuditHook
from .distill import DistillHook
from .export import StudentExportHook
from .overwrite import OverwriteHook

__all__ = ['DataAuditHook', 'DistillHook', 'OverwriteHook', 'StudentExportHook']
