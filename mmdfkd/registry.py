"""Registry nodes of the scope ``mmdfkd``.

Every node's parent is a root node of mmengine, so that both ``default_scope='mmdet'`` and
``'mmpretrain'``
find ``mmdfkd.X``. A node opens its rooms one by one, in the order of the house, until the name is
found: a
config that asks only for ``mmdfkd.ViTDet`` imports ``mmdfkd.models`` and never the distillers.

Every class registered here refuses settings that it does not take and names the nearest ones it
does.
"""

import inspect
from importlib import import_module

from mmengine import registry as root
from mmengine.registry import Registry

from .utils.arguments import checked
from .utils.checkpoint import register_local_loader

SCOPE = 'mmdfkd'


class RoomRegistry(Registry):
    """A registry that imports its rooms lazily and in order.

    Args:
        name (str): Name of the node.
        parent (Registry): The root node of mmengine.
        rooms (tuple[str]): Modules that register into this node, earliest room first.
    """

    def __init__(self, name: str, parent: Registry, rooms: tuple[str, ...]) -> None:
        super().__init__(name, parent=parent, scope=SCOPE)
        self._rooms = rooms

    def import_from_location(self) -> None:
        """Nothing to import at once: :meth:`get` opens the rooms as they are needed."""

    def get(self, key: str):
        """Return the class registered as ``key``, importing rooms until it is found."""
        name = key.rsplit('.', 1)[-1]
        for room in self._rooms:
            if name in self.module_dict:
                break
            import_module(room)
        return super().get(key)

    def _register_module(self, module, module_name=None, force: bool = False) -> None:
        super()._register_module(module, module_name, force)
        if inspect.isclass(module):
            checked(module)


def _rooms(*names: str) -> tuple[str, ...]:
    return tuple(f'{SCOPE}.{name}' for name in names)


MODELS = RoomRegistry('model', root.MODELS, _rooms('models', 'heads', 'synthesis', 'distillers'))
DATASETS = RoomRegistry('dataset', root.DATASETS, _rooms('datasets'))
DATA_SAMPLERS = RoomRegistry('data sampler', root.DATA_SAMPLERS, _rooms('datasets'))
TRANSFORMS = RoomRegistry('transform', root.TRANSFORMS, _rooms('datasets'))
HOOKS = RoomRegistry('hook', root.HOOKS, _rooms('engine'))
LOOPS = RoomRegistry('loop', root.LOOPS, _rooms('engine'))
OPTIM_WRAPPER_CONSTRUCTORS = RoomRegistry(
    'optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS, _rooms('engine')
)
MODEL_WRAPPERS = RoomRegistry('model wrapper', root.MODEL_WRAPPERS, _rooms('engine'))
METRICS = RoomRegistry('metric', root.METRICS, _rooms('evaluation'))
TASK_UTILS = RoomRegistry('task util', root.TASK_UTILS, _rooms('datasets', 'adapters'))

# Every file that a run loads, resumes from or starts from is read by the one safe reader.
register_local_loader()
