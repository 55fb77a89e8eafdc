"""What replay banks need around a checkpoint."""

from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner.base_loop import BaseLoop

from mmdfkd.synthesis.sources.banked import BankedSource


class BankHook(Hook):
    """Lets a checkpoint, which one process writes alone, name the images of all.

    All processes exchange the indices of their banks where a checkpoint is about to be saved: in
    this hook's turn, which comes before that of mmengine's ``CheckpointHook``. Saving itself waits
    for nobody.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """What was exchanged holds until the banks change."""
        for source in banked_sources(runner):
            source.forget_gathered()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Where a checkpoint is saved after this step."""
        if any(_saves_after_iter(hook, runner) for hook in _savers(runner)):
            self._before_checkpoint(runner)

    def after_train_epoch(self, runner) -> None:
        """Where one is saved after this epoch."""
        if any(_saves_after_epoch(hook, runner) for hook in _savers(runner)):
            self._before_checkpoint(runner)

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Where one may be saved for its figures."""
        training = isinstance(runner._train_loop, BaseLoop)
        if training and any(hook.save_best for hook in _savers(runner)):
            self._before_checkpoint(runner)

    def _before_checkpoint(self, runner) -> None:
        if get_world_size() > 1:
            for source in banked_sources(runner):
                source.gather_index()


def banked_sources(runner) -> list[BankedSource]:
    """The sources of a run that keep images, in an order that is the same on all processes."""
    return [part for part in runner.model.modules() if isinstance(part, BankedSource)]


def _savers(runner) -> list[CheckpointHook]:
    return [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]


def _saves_after_iter(hook: CheckpointHook, runner) -> bool:
    """As the hook itself decides."""
    due = hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
    return not hook.by_epoch and (due or (hook.save_last and hook.is_last_train_iter(runner)))


def _saves_after_epoch(hook: CheckpointHook, runner) -> bool:
    """As the hook itself decides."""
    if not hook.by_epoch:
        return False
    due = hook.every_n_epochs(runner, hook.interval, hook.save_begin)
    return due or (hook.save_last and hook.is_last_train_epoch(runner))
