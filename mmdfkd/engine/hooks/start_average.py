from pathlib import Path

from mmengine.hooks import EMAHook, Hook
from mmengine.runner.base_loop import BaseLoop

from mmdfkd.registry import HOOKS
from mmdfkd.utils.checkpoint import read_checkpoint, unwrap_state_dict
from mmdfkd.utils.run_files import STUDENT_START

from .distill import distiller_of
from .export import StudentExportHook


@HOOKS.register_module()
class StartAverageHook(Hook):
    """After the last step, goes a part of the way back to where the student started.

    ``theta = (1 - s) theta_start + s theta_trained`` (WiSE-FT, Wortsman et al., CVPR 2022). An
    inherited student starts near its teacher; images that are not the teacher's own teach it
    something, and lead it astray a little. Between the two it is better than at either end where
    the run is short (docs/notes/detr.md). What is validated last, saved last and exported is the
    average; what is no floating-point number stays as trained. A student with a random start knows
    nothing to go back to: it is left as trained, so that one config serves both starts.

    Args:
        share (float): Share ``s`` of the trained weights, in (0, 1). Defaults to 0.5.

    Raises:
        ValueError: On a share outside (0, 1).
    """

    def __init__(self, share: float = 0.5) -> None:
        if not 0 < share < 1:
            raise ValueError(f'StartAverageHook: share must be in (0, 1), not {share}.')
        self.share = share

    def before_run(self, runner) -> None:
        """Look whether there will be a start to go back to.

        Raises:
            ValueError: Without ``StudentExportHook``, which keeps it, or beside a moving average.
        """
        if not isinstance(runner._train_loop, BaseLoop):
            return  # testing
        if not any(isinstance(hook, StudentExportHook) for hook in runner.hooks):
            raise ValueError(
                f'StartAverageHook needs mmdfkd.StudentExportHook, which writes {STUDENT_START}.'
            )
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise ValueError(
                'StartAverageHook and a moving average of the weights exclude each other: leave '
                'one out.'
            )

    def before_train(self, runner) -> None:
        """A resumed run needs the start of the one that it continues.

        Raises:
            FileNotFoundError: If it is not there.
        """
        path = self._path(runner)
        if runner.iter and not path.is_file():
            raise FileNotFoundError(
                f'StartAverageHook: {path} is not there: the weights that the run started with '
                'are needed at its end. Put the file back, or leave the hook out.'
            )

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Average once, after the last step."""
        distiller = distiller_of(runner)
        if runner.iter + 1 < runner.max_iters:
            return
        if distiller.init == 'random':
            runner.logger.info('StartAverageHook: a random start is nothing to go back to.')
            return
        net = distiller.student.net
        start = unwrap_state_dict(read_checkpoint(str(self._path(runner))))
        state = net.state_dict()
        for name, value in state.items():
            if value.is_floating_point():
                value.lerp_(start[name].to(value), 1 - self.share)
        runner.logger.info(
            f'The student is {self.share:.0%} as trained and {1 - self.share:.0%} as it started.'
        )

    @staticmethod
    def _path(runner) -> Path:
        return Path(runner.work_dir) / STUDENT_START
