import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Matching, Probe, Targets
from mmdfkd.registry import MODELS
from mmdfkd.utils.arguments import accepted_arguments, check_arguments

from ..automatic import build_priors
from ..bank import ReplayBank
from ..descent import SmoothDescent
from ..frozen import frozen
from ..growth import LabelGrowth
from ..jitter import SceneJitter
from ..objective import check_finite, check_suited, suited_priors, taps_of
from ..pieces import Pieces
from ..priors.base import Prior
from ..priors.context import SynthesisContext
from ..scene import Scene, SceneComposer, neighbourhood
from ..symmetry import detected
from .banked import InvertingSource, bank_settings
from .base import SyntheticSource
from .mixture import MixtureSource

#: Indices of the start images begin here: no random numbers are shared with images that are drawn.
_OFFSET = 1 << 41
#: Least share of the first step's length that the last one has.
_LAST = 0.05


@MODELS.register_module()
class LayoutInversionSource(InvertingSource):
    """Images with objects in them, found by descending through a frozen detector.

    A scene is composed of pieces of another source's images: the ground is one of them, and on it
    lie those pieces in which the teacher sees something of the wanted classes, however faintly
    (:class:`~mmdfkd.synthesis.scene.SceneComposer`); where it proposes nothing, boxes of its
    anchors' sizes stand in, and no object is smaller than half its smallest anchor. The pixels then
    descend the teacher's layout loss and the priors, through another view at every step
    (:class:`~mmdfkd.synthesis.jitter.SceneJitter`) and along gradients of several scales
    (:class:`~mmdfkd.synthesis.descent.SmoothDescent`): what appears is what a person recognises
    too, not fine noise. Meanwhile the teacher's detections add and remove boxes
    (:class:`~mmdfkd.synthesis.growth.LabelGrowth`). Finished images go into a replay bank.

    ``images`` are made once, before the first step (the long mode); with ``every``, ``batch`` more
    are made each so many steps (the short mode, at most 20 gradient steps advised). Which they are
    follows from seed and teacher alone, unless a prior asks the student or the inner source has a
    state; to the bit only for the same ``batch``, as networks round differently in other batches.
    Layout inversion of detectors with a batch-norm backbone is DIODE's (Chawla et al., WACV 2021);
    scenes, views and steps are this project's.

    Args:
        source (Mapping): Config of the source of the start images, and of the draws that do not
            come from the bank.
        priors (Sequence[Mapping] | str): Configs of the terms of the objective; ``'auto'`` takes
            those of the teacher's report.
        images (int): Images made before the first step.
        every (int): Training steps between two further batches; 0 for none.
        batch (int): Images optimised at once.
        steps (int): Gradient steps of each.
        lr (float): Root mean square of an image's change in the first step, of the pixel range.
        scales (Sequence[float]): Deviations of the gradients' blurs, as shares of the image's
            shorter side.
        outside (float): How far pixels away from all boxes move, relative to those in a box.
        starts (int): Start images that the teacher scores for pieces.
        boxes (Sequence[int]): Least and most objects of a scene at its start.
        grow (Sequence[float]): When the teacher's detections revise the layouts, as shares of the
            steps; empty for never.
        share (float): Share of the draws that come from the bank.
        scene (Mapping | None): Further arguments of
            :class:`~mmdfkd.synthesis.scene.SceneComposer`.
        jitter (Mapping | None): Arguments of :class:`~mmdfkd.synthesis.jitter.SceneJitter`.
        growth (Mapping | None): Arguments of :class:`~mmdfkd.synthesis.growth.LabelGrowth`.
        scenes (str | None): Folder of a finished set, ``<work_dir>/synthetic`` of an earlier run
            with the same teacher: it is drawn from, and nothing is made.
        bank (Mapping | None): Further arguments of :class:`~mmdfkd.synthesis.bank.ReplayBank`.
        augment (Mapping | None): Config of the augmentation of the draws from the bank; None turns
            it off.

    Raises:
        ValueError: If an argument makes no sense.
    """

    title = 'Layout inversion'
    purpose = 'inverted'

    def __init__(
        self,
        source: Mapping,
        priors: Sequence[Mapping] | str = (
            dict(type='mmdfkd.TargetPrior', weight=1.0),
            dict(type='mmdfkd.TotalVariationPrior', weight=0.02),
        ),
        images: int = 128,
        every: int = 0,
        batch: int = 16,
        steps: int = 20,
        lr: float = 0.03,
        scales: Sequence[float] = (0.006, 0.016, 0.04),
        outside: float = 0.15,
        starts: int = 512,
        boxes: Sequence[int] = (2, 5),
        grow: Sequence[float] = (0.4, 0.7),
        share: float = 0.5,
        scene: Mapping | None = None,
        jitter: Mapping | None = None,
        growth: Mapping | None = None,
        scenes: str | None = None,
        bank: Mapping | None = None,
        augment: Mapping | None = dict(type='mmdfkd.LightAugment'),
    ) -> None:
        super().__init__(MODELS.build(source), images, every, batch, share, augment)
        for name, value in dict(batch=batch, steps=steps, starts=starts).items():
            if value < 1:
                raise ValueError(f'LayoutInversionSource: {name} must be at least 1, got {value}.')
        if not lr >= 0 or not scales or min(scales) < 0:
            raise ValueError(
                'LayoutInversionSource: lr must be at least 0 and scales a list of shares, not '
                f'{lr} and {scales}.'
            )
        if scenes is not None and every:
            raise ValueError(
                'LayoutInversionSource: a finished set (scenes) is not added to: set every=0.'
            )
        if not all(0 <= part < 1 for part in grow):
            raise ValueError(
                f'LayoutInversionSource: grow has shares of the steps below 1, not {tuple(grow)}.'
            )
        if len(boxes) != 2 or not 1 <= boxes[0] <= boxes[1]:
            raise ValueError(
                f'LayoutInversionSource: boxes is (least, most), at least 1, not {tuple(boxes)}.'
            )
        self.priors = build_priors(priors, 'LayoutInversionSource', student=bool(every))
        self.steps = steps
        self.lr = lr
        self.scales = tuple(scales)
        self.outside = outside
        self.starts = starts
        self.boxes = tuple(boxes)
        self.grow = tuple(grow)
        self.scene_cfg = dict(scene or {})
        self.growth_cfg = dict(growth or {})
        given = dict(
            scene=(self.scene_cfg, SceneComposer, ('pieces', 'rng')),
            jitter=(jitter or {}, SceneJitter, ()),
            growth=(self.growth_cfg, LabelGrowth, ()),
        )
        for name, (settings, kind, own) in given.items():
            names = [each for each in accepted_arguments(kind) if each not in own]
            check_arguments(f'LayoutInversionSource: {name}', settings, names)
        self.jitter = SceneJitter(**(jitter or {}))
        self.growth = LabelGrowth(**self.growth_cfg)
        self.least_size = 0.0
        self.sizes = torch.zeros(0, 2)
        self.scenes = scenes
        self.bank_cfg = bank_settings('LayoutInversionSource', bank)
        self._used: list[Prior] = list(self.priors)
        self.composer: SceneComposer | None = None
        # A resumed run finds such a source as it is now: scenes must not rest on what it was.
        self._start_changes = draws_change(self.source)
        # Batches in which the teacher detected some object.
        self.register_buffer('shown', torch.zeros((), dtype=torch.int64))

    def prepare(
        self,
        teacher: Adapter,
        *,
        seed: int,
        image_size: tuple[int, int],
        device: torch.device | str,
    ) -> None:
        """Prepare the inner source, choose the priors that suit the teacher, open the bank.

        Raises:
            TypeError: If the teacher predicts no boxes.
            ValueError: If no prior suits the teacher, or the bank does not fit.
        """
        super().prepare(teacher, seed=seed, image_size=image_size, device=device)
        sizes = None if teacher.sizes_from_images else teacher.box_sizes()
        self.prepare_inner(teacher)
        self._take_sizes(self._sizes_in_images(teacher) if sizes is None else sizes)
        self._used = suited_priors(self.priors, teacher, self.title)
        check_suited(self._used, 'LayoutInversionSource')
        self.composer = None
        index = None if self.scenes is None else ReplayBank.latest_index(self.scenes)
        if index is not None:
            self.images = sum(segment['count'] for segment in index['segments'])
        capacity = max(self.images, 1024) if self.every else self.images
        self.open_bank(self.scenes or self.folder, **{'capacity': capacity, **self.bank_cfg})
        if index is not None:
            self.bank.restore(index)
            self.made.fill_(self.images)
            print_log(f'Layout inversion: {self.images} images of {self.scenes}', 'current')
        self.restore_bank()

    def _take_sizes(self, sizes: Tensor) -> None:
        """Sizes of objects that the teacher finds: what is smaller no anchor finds."""
        self.sizes = sizes
        self.least_size = float(sizes.prod(1).sqrt().min()) / 2
        self.growth = LabelGrowth(**{'least_size': self.least_size, **self.growth_cfg})

    # Making images ------------------------------------------------------------------------------

    def fill(self, teacher: Adapter) -> None:
        """Make the first images; a prior that asks the student is answered by the teacher."""
        super().fill(teacher)
        # A finished set is another run's own.
        self._replaces = self.scenes is None

    def refresh(self, teacher: Adapter, student: Adapter, iteration: int) -> dict[str, float]:
        """Make the first images if they are not there, and a further batch if it is time.

        Returns:
            dict[str, float]: Of the last batch: the objective's terms before and after, and
                ``inverted/found``, the share of its boxes that the teacher detects.

        Raises:
            ValueError: If the teacher detects none of the objects of all images so far: there is
                nothing to learn from them.
        """
        return super().refresh(teacher, student, iteration)

    def success(self, made: Sequence[Mapping[str, float]]) -> str:
        """The share of the objects that the teacher detects."""
        found = np.mean([logs['inverted/found'] for logs in made])
        return f'the teacher detects {found:.0%} of their objects'

    def finish(self, made: Sequence[Mapping[str, float]], total: int) -> None:
        """Stop where nothing was ever detected; the start images are not kept."""
        self.shown += sum(logs['inverted/found'] > 0 for logs in made)
        if made and not self.shown:
            raise ValueError(
                f'Layout inversion: the teacher detects not one object in {total} images after '
                f'{self.steps} steps. Raise steps or lr, check the image size '
                f'({self.image_size[0]} x {self.image_size[1]} px) against the one the teacher was '
                'trained at, or use another source.'
            )
        if not self.every or self._start_changes:
            self.composer = None

    def make(
        self, count: int, teacher: Adapter, student: Adapter, iteration: int
    ) -> dict[str, float]:
        """Make ``count`` images, this process its part of them, and put them into the bank."""
        rank, world = get_dist_info()
        first = int(self.made)
        mine = list(range(first, first + count))[rank::world]
        self.made += count
        if not mine:
            return {}
        with frozen(teacher.net, student.net), torch.enable_grad():
            if self.composer is None:
                if self._start_changes and teacher.sizes_from_images:
                    self._take_sizes(self._sizes_in_images(teacher))
                settings = {'least_size': self.least_size, 'boxes': self.boxes, **self.scene_cfg}
                self.composer = SceneComposer(self.pieces(teacher), self.rng, **settings)
            scenes = [self.composer(serial) for serial in mine]
            images, targets, logs = self.invert(scenes, mine, teacher, student)
        self.bank.append(images, targets, iteration=iteration)
        return logs

    @torch.no_grad()
    def _sizes_in_images(self, teacher: Adapter) -> Tensor:
        """Of a teacher without anchors, which is shown the first start images: ``[K, 2]``."""
        count = min(self.batch, self.starts)
        images = self.source.draw([dict(g=_OFFSET + i) for i in range(count)])[0]
        return teacher.box_sizes(teacher.encode(images.to(self.device)))

    @torch.no_grad()
    def pieces(self, teacher: Adapter) -> Pieces:
        """Let the teacher look for its classes in the inner source's images."""
        images, votes, boxes = [], [], []
        for first in range(0, self.starts, self.batch):
            items = [
                dict(g=_OFFSET + i) for i in range(first, min(first + self.batch, self.starts))
            ]
            drawn = (self.source.draw(items)[0] * 255).round().to(torch.uint8)
            seen, where = teacher.class_places(teacher.encode(drawn.float() / 255))
            images.append(drawn.cpu())
            votes.append(seen.float().cpu())
            boxes.append(where.float().cpu())
        found = Pieces(torch.cat(images), torch.cat(votes).numpy(), torch.cat(boxes).numpy())
        surest = found.votes.max(0)
        # Where it is done for every batch, the log says so once.
        level = logging.DEBUG if int(self.shown) else logging.INFO
        print_log(
            f'Layout inversion: the surest piece of a class is seen with {np.median(surest):.2f} '
            f'(median of {len(surest)} classes; least {surest.min():.2f})',
            'current',
            level,
        )
        sizes = self.sizes.double().cpu().numpy()
        found = found.completed(sizes, self.least_size, self.rng('places', 0))
        unseen = int((found.votes.max(0) == 0).sum())
        if unseen:
            print_log(
                f'Layout inversion: {unseen} of {len(surest)} classes are seen nowhere; boxes of '
                "its anchors' sizes at random places stand in for theirs",
                'current',
                level,
            )
        return found

    def invert(
        self, scenes: Sequence[Scene], serials: Sequence[int], teacher: Adapter, student: Adapter
    ) -> tuple[Tensor, Targets, dict[str, float]]:
        """Descend from scenes; both networks must be frozen.

        Args:
            scenes (Sequence[Scene]): Images and layouts to start from; layouts may be empty.
            serials (Sequence[int]): Their numbers, which the random views depend on.
            teacher (Adapter): The teacher.
            student (Adapter): The student.

        Returns:
            tuple[Tensor, Targets, dict[str, float]]: Images ``[B, 3, H, W]`` uint8, what they show,
                and values to log.

        Raises:
            FloatingPointError: If the objective is not finite.
        """
        device = self.device
        canvas = torch.stack([scene.image for scene in scenes]).to(device).requires_grad_()
        boxes = [scene.boxes.to(device) for scene in scenes]
        labels = [scene.labels.to(device) for scene in scenes]
        size = tuple(canvas.shape[-2:])
        taps = taps_of(self._used, teacher)
        descent = SmoothDescent([scale * min(size) for scale in self.scales], self.lr)
        revisions = {int(share * self.steps) for share in self.grow}
        where, matching, first, terms = None, None, None, {}
        for step in range(self.steps):
            if step in revisions:
                boxes, labels = self._revise(canvas, boxes, labels, teacher)
                where = None
            if where is None:
                where = neighbourhood(boxes, size, self.outside)
                matching = Matching.at(step, self.steps)
            rngs = [self.rng(f'view{step}', serial) for serial in serials]
            views, moved = self.jitter(canvas, boxes, rngs)
            probe = Probe(moved, [own.new_ones(len(own)) for own in moved])
            # Anchors are assigned anew, since the boxes have moved; a query stays with its box.
            targets = Targets(boxes=moved, box_labels=labels, matching=matching)
            ctx = SynthesisContext(
                views,
                targets,
                teacher,
                student,
                probe,
                taps,
                canvas,
                seed=self.seed,
                serials=serials,
                step=step,
            )
            terms = {prior: prior(ctx) for prior in self._used}
            # A term of the whole batch counts for every image, as in refinement.
            total = sum(
                (prior.weight * term).expand(len(scenes)).sum() for prior, term in terms.items()
            )
            check_finite(total, terms, self.title, step)
            first = total.detach() if first is None else first
            (gradient,) = torch.autograd.grad(total, [canvas])
            slower = (1 + math.cos(math.pi * step / self.steps)) / 2
            descent.step(canvas.data, gradient, _LAST + (1 - _LAST) * slower, where)
        images = (canvas.detach() * 255).round().to(torch.uint8)
        boxes, labels, found = self._finish(images, boxes, labels, teacher)
        shown = Targets(boxes=boxes, box_labels=labels)
        with torch.no_grad():
            kept = SynthesisContext(
                images.float() / 255,
                shown,
                teacher,
                student,
                Probe(boxes, [own.new_ones(len(own)) for own in boxes]),
                taps,
                seed=self.seed,
                serials=serials,
                step=self.steps,
            )
            for prior in self._used:
                prior.finished(kept)
        logs = {
            f'inverted/{prior.name}': float(term.detach().mean()) for prior, term in terms.items()
        }
        logs['inverted/before'] = float(first) / len(scenes)
        logs['inverted/after'] = float(total.detach()) / len(scenes)
        logs['inverted/found'] = found
        return images, shown, logs

    @torch.no_grad()
    def _revise(
        self, canvas: Tensor, boxes: list[Tensor], labels: list[Tensor], teacher: Adapter
    ) -> tuple[list[Tensor], list[Tensor]]:
        detections = teacher.detect(teacher.encode(canvas))
        return self.growth(boxes, labels, detections, tuple(canvas.shape[-2:]))

    @torch.no_grad()
    def _finish(
        self, images: Tensor, boxes: list[Tensor], labels: list[Tensor], teacher: Adapter
    ) -> tuple[list[Tensor], list[Tensor], float]:
        """Last revision of the stored pixels, and the share of boxes that the teacher detects."""
        detections = teacher.detect(teacher.encode(images.float() / 255))
        size = tuple(images.shape[-2:])
        found = [
            detected(own, kinds, seen)
            for own, kinds, seen in zip(boxes, labels, detections, strict=True)
        ]
        if self.grow:
            boxes, labels = self.growth(boxes, labels, detections, size)
        seen = torch.cat(found)
        return boxes, labels, float(seen.sum()) / max(len(seen), 1)


def draws_change(source: SyntheticSource) -> bool:
    """Whether a source's draws depend on the step: it learns, keeps images, or mixes by a schedule.

    Args:
        source (SyntheticSource): With its parts.
    """

    def changes(part: SyntheticSource) -> bool:
        if isinstance(part, MixtureSource):
            return len(part.steps) > 1
        return type(part).refresh is not SyntheticSource.refresh

    return any(changes(part) for part in source.modules() if isinstance(part, SyntheticSource))
