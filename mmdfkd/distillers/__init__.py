"""Student, teacher and the distiller that joins them."""

from .data_free import DataFreeDistiller, NonFiniteLossError
from .networks import build_network, load_config, model_config, scope_of
from .student import Student
from .teacher import Teacher

__all__ = [
    'DataFreeDistiller',
    'NonFiniteLossError',
    'Student',
    'Teacher',
    'build_network',
    'load_config',
    'model_config',
    'scope_of',
]
