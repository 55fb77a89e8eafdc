"""What replay banks need around a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner.base_loop import BaseLoop

from mmdfkd.synthesis.sources.banked import BankedSource
from mmdfkd.utils.checkpoint import CheckpointError, read_checkpoint
from mmdfkd.utils.run_files import checkpoints_in


class BankHook(Hook):
    """Lets a checkpoint, which one process writes alone, name the images of all.

    All processes exchange the indices of their banks where a checkpoint is about to be saved: in
    this hook's turn, which comes before that of mmengine's ``CheckpointHook``. Saving itself waits
    for nobody.

    Once it is written, the files of images are deleted that are drawn no more and that no
    checkpoint of the run names: a run resumes from each checkpoint that is there. Where one of them
    cannot be read, nothing is deleted.
    """

    priority = 'VERY_HIGH'

    # Whether a checkpoint was saved since files were last deleted.
    _saved = False

    def __init__(self) -> None:
        # Of each checkpoint, by its path, time and size, the files that it names.
        self._named: dict[tuple[str, int, int], frozenset[str]] = {}

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """What was exchanged holds until the banks change."""
        for source in banked_sources(runner):
            source.forget_gathered()
        self._prune(runner)

    def after_train(self, runner) -> None:
        """After the last checkpoint."""
        self._prune(runner)

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
        self._saved = True
        if get_world_size() > 1:
            for source in banked_sources(runner):
                source.gather_index()

    def _prune(self, runner) -> None:
        """Delete what neither a bank nor a checkpoint needs, on all processes."""
        if not self._saved:
            return
        self._saved = False
        banks = [source.bank for source in banked_sources(runner) if source.owns_files]
        alone = get_world_size() == 1
        if not banks or (alone and not any(bank.unneeded() for bank in banks)):
            return
        # The others wait until the checkpoint is written.
        found = [self._needed(runner) if is_main_process() else None]
        broadcast_object_list(found)
        if found[0] is not None:
            for bank in banks:
                bank.prune(names=found[0])

    def _needed(self, runner) -> set[str] | None:
        """Files that the run's checkpoints name; None where that is not known."""
        folders = {str(runner.work_dir), *(str(hook.out_dir) for hook in _savers(runner))}
        known, self._named = self._named, {}
        try:
            for folder in folders - {'None'}:
                if '://' in folder:
                    raise OSError('it is not on this machine')
                for path in checkpoints_in(folder):
                    facts = path.stat()
                    key = (str(path), facts.st_mtime_ns, facts.st_size)
                    self._named[key] = known[key] if key in known else files_named_by(path)
        except (OSError, CheckpointError) as error:
            runner.logger.warning(
                f'The checkpoints in {folder} cannot all be read ({error}): images that the banks '
                'draw no more stay on disk.'
            )
            return None
        return set().union(*self._named.values())


def files_named_by(path: Path) -> frozenset[str]:
    """Files of banks that a checkpoint needs.

    Args:
        path (Path): Of a run, or of a student alone, which needs none.

    Raises:
        CheckpointError: If it cannot be read.
    """

    def names(part: Any) -> set[str]:
        if isinstance(part, Mapping):
            found = set().union(*map(names, part.values()))
            if 'segments' in part and 'next_ids' in part:
                found |= {str(segment['name']) for segment in part['segments']}
            return found
        return set()

    return frozenset(names(read_checkpoint(path).get('dfkd_state', {}).get('source', {})))


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
