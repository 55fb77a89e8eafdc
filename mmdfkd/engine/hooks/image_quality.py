"""Watches what a source makes, without a real image."""

from collections.abc import Mapping
from dataclasses import fields

import torch
from mmengine.dist import all_gather, broadcast, get_world_size
from mmengine.hooks import Hook
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor

from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.distillers.teacher import Teacher
from mmdfkd.evaluation.collapse import CollapseLimits, find_collapse
from mmdfkd.evaluation.image_quality import Seen, describe_quality, quality_of, see
from mmdfkd.registry import HOOKS
from mmdfkd.utils.arguments import accepted_arguments, check_arguments

from .distill import distiller_of
from .newest import check_teacher_runs, generators_kept, newest_images

#: Under this name the figures are in the message hub, in ``run.json`` and in the report.
QUALITY = 'image_quality'
#: Beyond so many looks every second one is dropped.
_MOST_LOOKS = 128


@HOOKS.register_module()
class SyntheticQualityHook(Hook):
    """Says how good the newest images are, by what the networks say of them.

    At the first step, and then every ``interval`` steps: the histogram of the teacher's confidence,
    how many classes it names, near-duplicates, how few places its attention goes to, how far the
    student's answers are from its own, on these images and on older ones, and how often an
    independent verifier names the same class. They go to the log, to the visualizer (TensorBoard)
    and into ``run.json`` and the report.

    **Alarm.** Where a figure is beyond its limit in ``patience`` looks on end, the hook warns what
    happened and asks the source to draw less of it
    (:meth:`mmdfkd.synthesis.SyntheticSource.on_collapse`); it says what that changed. Unless an
    alarm goes off, a run with the hook is bit for bit the run without it. What the hook remembers,
    older images among it, is in the checkpoint.

    Args:
        interval (int | str): Steps between two looks, or ``'refresh'`` for a look whenever the
            source has made something.
        images (int): Most images of a look, of each process.
        old (int): How many older images are kept, in the checkpoint too.
        verifier (Mapping, optional): ``config``, ``checkpoint`` and perhaps ``input_order`` of
            another network of the same classes, as the teacher's.
        bins (int): Of the histogram.
        limits (Mapping, optional): Of :class:`mmdfkd.evaluation.collapse.CollapseLimits`.
        patience (int): Looks on end beyond a limit before the alarm.
        act (bool): Whether the source is asked to change something; False only warns.

    Raises:
        ValueError: If an argument makes no sense.
    """

    # Behind the step, before it is logged (BELOW_NORMAL) and saved (VERY_LOW).
    priority = 'NORMAL'

    def __init__(
        self,
        interval: int | str = 100,
        images: int = 32,
        old: int = 16,
        verifier: Mapping | None = None,
        bins: int = 10,
        limits: Mapping | None = None,
        patience: int = 2,
        act: bool = True,
    ) -> None:
        if interval != 'refresh' and not (isinstance(interval, int) and interval >= 1):
            raise ValueError(
                "SyntheticQualityHook: interval is a number of steps, at least 1, or 'refresh'; "
                f'got {interval!r}.'
            )
        for name, value, least in (
            ('images', images, 1),
            ('old', old, 0),
            ('bins', bins, 1),
            ('patience', patience, 1),
        ):
            if value < least:
                raise ValueError(
                    f'SyntheticQualityHook: {name} must be at least {least}, got {value}.'
                )
        self.interval = interval
        self.images = images
        self.bins = bins
        self.patience = patience
        self.act = act
        known = tuple(field.name for field in fields(CollapseLimits))
        check_arguments('SyntheticQualityHook.limits', limits or (), known)
        self.limits = CollapseLimits(**(limits or {}))
        check_arguments(
            'SyntheticQualityHook.verifier', verifier or (), accepted_arguments(Teacher)
        )
        self.verifier_cfg = None if verifier is None else dict(verifier)
        self.verifier: Teacher | None = None
        self.most_old = old
        self.old: Tensor | None = None
        self.seen = 0
        self.looks: list[dict] = []
        self.alarms: list[dict] = []
        self.beyond: dict[str, int] = {}

    def before_run(self, runner) -> None:
        """Build the verifier, before anything costs time.

        Raises:
            ValueError: If it has other classes than the teacher, or the teacher does not run.
        """
        if not isinstance(runner._train_loop, BaseLoop):
            return  # testing
        check_teacher_runs(runner, 'SyntheticQualityHook')
        if self.verifier_cfg is None:
            return
        teacher = distiller_of(runner).teacher.adapter
        # Building it draws its random weights; the student's start is not to depend on that.
        with generators_kept():
            self.verifier = Teacher(**self.verifier_cfg)
        own = self.verifier.adapter
        if own.num_classes != teacher.num_classes or own.detects != teacher.detects:
            raise ValueError(
                f'SyntheticQualityHook: the verifier is a {own.family} network of '
                f'{own.num_classes} classes, the teacher a {teacher.family} network of '
                f'{teacher.num_classes}: it must answer the same question.'
            )

    def before_train(self, runner) -> None:
        """Load the verifier."""
        if self.verifier is not None:
            self.verifier.load()
            self.verifier.net.to(next(distiller_of(runner).student.parameters()).device)

    # The looks ----------------------------------------------------------------------------------

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Look, if it is time."""
        due = runner.iter == 0
        if self.interval == 'refresh':
            due |= distiller_of(runner).refreshed
        else:
            due |= (runner.iter + 1) % self.interval == 0
        if due:
            with generators_kept():
                self.look(runner, data_batch)

    def look(self, runner, data_batch: Mapping) -> None:
        """Look at the newest images, tell what is seen, and sound the alarm if there is cause."""
        distiller = distiller_of(runner)
        images = newest_images(runner, data_batch, self.images)
        batch = max(1, len(next(iter(data_batch.values()))))
        networks = [distiller.teacher.adapter, distiller.student.adapter]
        verifier = None if self.verifier is None else self.verifier.adapter
        new = _gathered(see(images, *networks, verifier, batch=batch))
        older = None
        if self.old is not None and len(self.old):
            older = see(self.old, *networks, batch=batch).divergence
        quality = quality_of(new, older, self.bins)
        iteration = runner.iter + 1
        runner.logger.info(
            f'Synthetic images at iteration {iteration}: '
            + describe_quality(quality, distiller.teacher.adapter.num_classes)
        )
        self._draw(runner, quality, new.votes.amax(1), iteration)
        self.looks.append(dict(iteration=iteration, **quality))
        if len(self.looks) > _MOST_LOOKS:
            self.looks = self.looks[::2]
        self._remember(images, runner.seed)
        self._judge(runner, quality, iteration)
        runner.message_hub.update_info(QUALITY, self.report(), resumed=False)

    @staticmethod
    def _draw(runner, quality: Mapping, confidence: Tensor, iteration: int) -> None:
        """To the visualizer; the histogram to those backends that have some."""
        scalars = {
            f'quality/{name}': value
            for name, value in quality.items()
            if isinstance(value, (int, float)) and name != 'images'
        }
        runner.visualizer.add_scalars(scalars, step=iteration)
        for backend in runner.visualizer._vis_backends.values():
            add = getattr(getattr(backend, 'experiment', None), 'add_histogram', None)
            if add is not None:
                add('quality/confidence_histogram', confidence.numpy(), iteration)

    def _remember(self, images: Tensor, seed: int) -> None:
        """Keep some images, so that every look of the run has about the same number among them."""
        if not self.most_old:
            return
        # The same on all processes: one of them writes the checkpoint.
        images = images.clone()
        broadcast(images)
        if self.old is None:
            self.old = images[:0]
        room = self.most_old - len(self.old)
        rng = stream('quality-old', seed, self.seen)
        picked = rng.permutation(len(images))
        self.old = torch.cat([self.old, images[picked[:room]]])
        rest = picked[room:][: self.most_old // (self.seen + 1)] if self.seen else ()
        if len(rest):
            places = rng.permutation(len(self.old))[: len(rest)]
            self.old[places] = images[rest[: len(places)]]
        self.seen += 1

    # The alarm ----------------------------------------------------------------------------------

    def _judge(self, runner, quality: Mapping, iteration: int) -> None:
        """Warn, and ask the source for a change, where a figure stays beyond its limit."""
        found = find_collapse(quality, self.limits)
        self.beyond = {kind: self.beyond.get(kind, 0) + 1 for kind in found}
        reasons = {kind: found[kind] for kind in found if self.beyond[kind] >= self.patience}
        if not reasons:
            return
        # What was changed gets its time before the next alarm.
        self.beyond = {}
        changed = None
        if self.act:
            changed = distiller_of(runner).source.on_collapse(tuple(reasons))
            done = f'changed: {changed}' if changed else 'the source offers nothing to change'
        else:
            done = 'nothing was changed (act=False)'
        runner.logger.warning(
            f'Collapse alarm at iteration {iteration}: {"; ".join(reasons.values())}. {done}.'
        )
        self.alarms.append(dict(iteration=iteration, reasons=reasons, changed=changed))

    def report(self) -> dict:
        """For ``run.json`` and the report: all looks and alarms."""
        return dict(
            verifier=None if self.verifier is None else str(self.verifier.checkpoint),
            looks=self.looks,
            alarms=self.alarms,
        )

    # Checkpoint ---------------------------------------------------------------------------------

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep what alarms depend on."""
        checkpoint.setdefault('dfkd_state', {})[QUALITY] = dict(
            old=self.old,
            seen=self.seen,
            looks=list(self.looks),
            alarms=list(self.alarms),
            beyond=dict(self.beyond),
        )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Go on from there; a run that had no such hook starts looking now."""
        state = checkpoint.get('dfkd_state', {}).get(QUALITY)
        if runner._resume and state is not None:
            self.old, self.seen = state['old'], state['seen']
            self.looks, self.alarms = list(state['looks']), list(state['alarms'])
            self.beyond = dict(state['beyond'])
            runner.message_hub.update_info(QUALITY, self.report(), resumed=False)


def _gathered(seen: Seen) -> Seen:
    """What all processes saw, so that they all come to the same conclusion."""
    if get_world_size() == 1:
        return seen
    joined = {}
    for field in fields(Seen):
        value = getattr(seen, field.name)
        joined[field.name] = None if value is None else torch.cat(all_gather(value))
    return Seen(**joined)
