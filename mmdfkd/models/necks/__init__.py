from .lift import Lift, WideLast
from .simple_fpn import SimpleFPN

__all__ = ['Lift', 'SimpleFPN', 'WideLast']
