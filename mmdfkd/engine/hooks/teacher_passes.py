from contextlib import ExitStack
from pathlib import Path

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner.base_loop import BaseLoop

from mmdfkd.registry import HOOKS
from mmdfkd.synthesis.pass_count import counted
from mmdfkd.utils.run_files import write_json

from .distill import distiller_of

#: File of the counts in the work directory, and their name in the checkpoint.
TEACHER_PASSES = 'teacher_passes'


@HOOKS.register_module()
class TeacherPassesHook(Hook):
    """Counts what a run asks of its teacher and writes it to ``teacher_passes.json``.

    The unit is one whole image through the teacher without gradient; with a gradient to its pixels
    it counts twice, and in part (a smaller size, dropped patches) by its share of the tokens.
    ``start`` is what was asked before the first training step, to make images and the student's
    start; ``all`` the whole run. A resumed run adds to them, what it makes again too.
    """

    # After DistillHook has tried the image size.
    priority = 'HIGH'

    def before_run(self, runner) -> None:
        """Count from here on."""
        self._open = ExitStack()
        self._before = dict(start=0.0, all=0.0)
        self._count = None
        if not isinstance(runner._train_loop, BaseLoop):
            return  # testing
        distiller = distiller_of(runner)
        self._count = self._open.enter_context(counted(distiller.teacher.net, distiller.image_size))

    def before_train(self, runner) -> None:
        """Keep what the start took; a resumed run has it from its checkpoint."""
        if not distiller_of(runner).resuming:
            self._before['start'] = self._count.work

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """The counts so far, of this process."""
        checkpoint.setdefault('dfkd_state', {})[TEACHER_PASSES] = self._now()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Go on from the counts of the interrupted run."""
        if runner._resume and self._count is not None:
            self._before |= checkpoint.get('dfkd_state', {}).get(TEACHER_PASSES, {})

    def after_train(self, runner) -> None:
        """Write the counts of all processes."""
        found = self._now()
        self._open.close()
        if get_world_size() > 1:
            device = next(runner.model.parameters()).device
            total = torch.tensor(list(found.values()), device=device)
            all_reduce(total)
            found = dict(zip(found, total.tolist(), strict=True))
        if is_main_process():
            rounded = {name: round(value) for name, value in found.items()}
            write_json(Path(runner.work_dir) / f'{TEACHER_PASSES}.json', rounded)

    def _now(self) -> dict[str, float]:
        return dict(start=self._before['start'], all=self._before['all'] + self._count.work)
