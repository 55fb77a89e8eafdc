import copy

from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from mmengine.runner.base_loop import BaseLoop

from mmdfkd.registry import HOOKS
from mmdfkd.utils.arguments import accepted_arguments, check_arguments

from .distill import distiller_of

_OF_HOOK = ('ema_type', 'strict_load', 'begin_iter', 'begin_epoch')


def averaged_student(runner) -> dict | None:
    """Weights of the student that an EMA hook of the run keeps, in its plain names.

    Args:
        runner (Runner): With :class:`StudentEMAHook` or mmengine's ``EMAHook``, or without either.

    Returns:
        dict | None: None where nothing is averaged.
    """
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            # mmengine's holds a copy of the distiller, whose state is the plain student's.
            return hook.ema_model.module.state_dict()
    return None


@HOOKS.register_module()
class StudentEMAHook(EMAHook):
    """Validates, saves and exports a moving average of the student's weights.

    mmengine's ``EMAHook``, for the plain student alone: it copies neither the distill heads nor the
    source with its images. Checkpoints have the average as ``state_dict`` and the trained weights
    under ``ema_state_dict``, from which a resumed run goes on; ``student.pth`` is the average.

    Args:
        momentum (float): Share of the new weights in each step's average. Defaults to 0.01, the
            last hundred steps or so; mmengine's 0.0002 suits runs of tens of thousands. An average
            that takes none (``StochasticWeightAverage``) gets none.
        **kwargs: As of ``EMAHook``: ``ema_type``, ``begin_iter``, ``update_buffers``, ...

    Raises:
        TypeError: If neither the hook nor the average takes one of them.
    """

    def __init__(self, momentum: float = 0.01, **kwargs) -> None:
        super().__init__(momentum=momentum, **kwargs)
        # mmengine hands what it does not know to the average, which is built after the pool is.
        with MODELS.switch_scope_and_registry(None) as registry:
            average = registry.get(self.ema_cfg['type'])
        takes = None if average is None else accepted_arguments(average)
        if takes is None:
            return
        check_arguments('StudentEMAHook', kwargs, [*_OF_HOOK, *takes[1:]])
        if 'momentum' not in takes:
            del self.ema_cfg['momentum']

    def before_run(self, runner) -> None:
        """Copy the student; its weights follow before the first step."""
        self.src_model = distiller_of(runner).student.net
        self.ema_model = MODELS.build(
            copy.deepcopy(self.ema_cfg), default_args=dict(model=self.src_model)
        )

    def before_train(self, runner) -> None:
        """Begin at the student as it starts, not as it was built."""
        super().before_train(runner)
        if isinstance(runner._train_loop, BaseLoop) and not self.ema_model.steps:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())
