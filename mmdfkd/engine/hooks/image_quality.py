"""Watches what a source makes, without a real image."""

import time
from collections.abc import Mapping
from dataclasses import fields

import torch
from mmengine.dist import all_gather, all_reduce, broadcast, get_world_size
from mmengine.hooks import Hook
from torch import Tensor

from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.distillers.teacher import Teacher
from mmdfkd.evaluation.collapse import CollapseLimits, find_collapse
from mmdfkd.evaluation.image_quality import Seen, describe_quality, quality_of, see
from mmdfkd.registry import HOOKS
from mmdfkd.utils.arguments import accepted_arguments, check_arguments

from .distill import distiller_of
from .newest import aside, can_look, newest_images

#: Under this name the figures are in the message hub, in ``run.json`` and in the report.
QUALITY = 'image_quality'
#: Beyond so many looks every second one is dropped.
_MOST_LOOKS = 128
#: Fewest and most images of a look, where their number follows the batch.
_IMAGES = (8, 32)


@HOOKS.register_module()
class SyntheticQualityHook(Hook):
    """Says how good the newest images are, by what the networks say of them.

    At the first step, every ``interval`` steps and when the source has made images, unless the last
    look was less than ``apart`` steps ago: the histogram of the teacher's confidence,
    how many classes it names, near-duplicates, how few places its attention goes to, how far the
    student's answers are from its own, on these images and on older ones, and how often an
    independent verifier names the same class. They go to the log, to the visualizer (TensorBoard)
    and into ``run.json`` and the report.

    **Alarm.** Where a figure is beyond its limit in ``patience`` looks on end, the hook warns what
    happened and asks the source to draw less of it or to make other images
    (:meth:`mmdfkd.synthesis.SyntheticSource.on_collapse`); it says what that changed. Unless an
    alarm goes off, a run with the hook is bit for bit the run without it. What the hook remembers,
    older images among it, is in the checkpoint; of a run that is not data-free it keeps no image.

    What it asks the teacher does not count in ``mmdfkd.TeacherPassesHook``. Its seconds are in
    ``run.json``.

    Args:
        interval (int | str): Steps between two looks, or ``'refresh'`` for a look whenever the
            source has made something, and at no other time.
        apart (int | None): Fewest steps between two looks where the source has made something; None
            for none that is due to it.
        images (int | None): Most images of a look, of each process; None for twice the step's
            batch, from 8 to 32.
        old (int | None): How many older images are kept, in the checkpoint too; None for half as
            many.
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
        apart: int | None = 20,
        images: int | None = None,
        old: int | None = None,
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
            ('apart', apart, 1),
            ('images', images, 1),
            ('old', old, 0),
            ('bins', bins, 1),
            ('patience', patience, 1),
        ):
            if value is not None and value < least:
                raise ValueError(
                    f'SyntheticQualityHook: {name} must be at least {least}, got {value}.'
                )
        self.interval = interval
        self.apart = apart
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
        self.at_work = False
        self.seconds = 0.0

    def before_run(self, runner) -> None:
        """Build the verifier, before anything costs time.

        Raises:
            ValueError: If it has other classes than the teacher.
        """
        self.at_work = can_look(runner, 'SyntheticQualityHook')
        if not self.at_work or self.verifier_cfg is None:
            return
        teacher = distiller_of(runner).teacher.adapter
        # Building it draws its random weights; the student's start is not to depend on that.
        with aside():
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
        if not self.at_work or not self._due(runner):
            return
        began = time.perf_counter()
        with aside():
            self.look(runner, data_batch)
        self.seconds += time.perf_counter() - began
        runner.message_hub.update_info(QUALITY, self.report(), resumed=False)

    def _due(self, runner) -> bool:
        step = runner.iter + 1
        if step == 1:
            return True
        if self.interval == 'refresh':
            return _anywhere(runner, distiller_of(runner).refreshed)
        if step % self.interval == 0:
            return True
        last = self.looks[-1]['iteration'] if self.looks else 0
        if self.apart is None or step - last < self.apart:
            return False
        return _anywhere(runner, distiller_of(runner).refreshed)

    def look(self, runner, data_batch: Mapping) -> None:
        """Look at the newest images, tell what is seen, and sound the alarm if there is cause."""
        distiller = distiller_of(runner)
        batch = max(1, len(next(iter(data_batch.values()))))
        least, most = _IMAGES
        count = min(max(2 * batch, least), most) if self.images is None else self.images
        images = newest_images(runner, data_batch, count)
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
        if distiller.data_free:
            self._remember(images, runner.seed)
        self._judge(runner, quality, iteration)

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
        if self.most_old is None:
            self.most_old = len(images) // 2
        if not self.most_old:
            return
        # The same on all processes: one of them writes the checkpoint.
        images = images.clone()
        broadcast(images)
        if self.old is None:
            self.old = images[:0]
        room = max(0, self.most_old - len(self.old))
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
            seconds=round(self.seconds, 2),
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
            # The Runner reads a checkpoint to its device; images are looked at on the CPU.
            self.old = None if state['old'] is None else state['old'].cpu()
            self.seen = state['seen']
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


def _anywhere(runner, here: bool) -> bool:
    """Whether it is so in some process: a look is taken by all of them or by none."""
    if get_world_size() == 1:
        return here
    flag = torch.tensor(float(here), device=next(runner.model.parameters()).device)
    all_reduce(flag, 'max')
    return bool(flag)
