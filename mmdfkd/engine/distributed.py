"""The distiller on several processes."""

from collections.abc import Mapping

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor

from mmdfkd.distillers import DataFreeDistiller
from mmdfkd.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class DistributedDistiller(MMDistributedDataParallel):
    """Averages the student's gradients over the processes of a run.

    mmengine's own wrapper never calls a model's ``train_step``, and would take the images for the
    student's ordinary input. Here the step is the distiller's, and what has gradients, the
    student's one forward with the losses of its heads, goes through the wrapper. A source that
    learns has an optimiser of its own and averages its gradients itself.

    Args:
        module (DataFreeDistiller): The distiller.
        device_ids (list, optional): Of a GPU; on a CPU there is none, whatever is given.
        broadcast_buffers (bool): Whether each forward starts with the buffers of the first process.
            Defaults to False, as the Runner's own wrapper.
        **kwargs: Of ``torch.nn.parallel.DistributedDataParallel``, such as
            ``find_unused_parameters=True``, which hooks that fix parts of the student need.

    Raises:
        TypeError: If the module is no distiller.
    """

    def __init__(
        self,
        module: DataFreeDistiller,
        device_ids: list | None = None,
        broadcast_buffers: bool = False,
        **kwargs,
    ) -> None:
        if not isinstance(module, DataFreeDistiller):
            raise TypeError(
                f'DistributedDistiller wraps a DataFreeDistiller, not a {type(module).__name__}: '
                'leave model_wrapper_cfg out of the config.'
            )
        student = {id(p) for p in module.student.parameters()}
        others = [name for name, p in module.named_parameters() if id(p) not in student]
        self._set_params_and_buffers_to_ignore_for_model(module, others)
        on_cpu = next(module.student.parameters()).device.type == 'cpu'
        super().__init__(
            module,
            device_ids=None if on_cpu else device_ids,
            broadcast_buffers=broadcast_buffers,
            **kwargs,
        )

    def train_step(
        self, data: Mapping, optim_wrapper: OptimWrapper | OptimWrapperDict
    ) -> dict[str, Tensor]:
        """The distiller's step, its student run through this wrapper."""
        return self.module.train_step(data, optim_wrapper, wrapped=self)
