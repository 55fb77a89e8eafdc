import logging
import math
import time
from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.registry import MODELS, TASK_UTILS

from ..automatic import build_priors
from ..descent import OptimizerDescent, SmoothDescent
from ..frozen import frozen
from ..greyness import grey_images, kept_grey
from ..inversion_run import InversionRun
from ..objective import balanced_label, check_finite, check_suited, suited_priors, weighted_names
from ..pass_count import counted
from ..priors.base import Prior
from ..priors.parts import patch_size
from ..sparse import SparseMode, dense_only, patch_grid, pixels_of, split_patches
from ..views import InversionViews
from .banked import InvertingSource, bank_settings

_STARTS = ('source', 'noise', 'bank')
#: Indices of the start images begin here: no random numbers are shared with images that are drawn.
_OFFSET = 1 << 42
#: Least share of the first step's length that the last one has.
_LAST = 0.05
#: Deviation of the noise that an inversion may start from, of the pixel range.
_NOISE = 0.15


@MODELS.register_module()
class PixelInversionSource(InvertingSource):
    """Images in which a frozen teacher sees the class that was wanted, by steps on their pixels.

    For any teacher: a classifier's images are each to show one class, balanced by whole passes over
    the classes; a detector's a layout at its own proposals
    (:func:`~mmdfkd.synthesis.layouts.wanted_targets`). Hard targets are
    :class:`~mmdfkd.synthesis.priors.target.TargetPrior`'s; for soft ones put
    ``ClassPrior(mode='soft')`` in its place, for boxes that show classes of their own
    :class:`~mmdfkd.synthesis.priors.sub_boxes.SubBoxPrior`.

    The first share of the steps is taken at half the resolution. Every step sees another view
    (:class:`~mmdfkd.synthesis.views.InversionViews`) and goes along gradients of several scales
    (:class:`~mmdfkd.synthesis.descent.SmoothDescent`). Now and then the image itself is asked, and
    the best one is kept, as a copy; finished images go into a replay bank.

    An image that starts without colour stays without: colours would be the easiest way to please a
    teacher that was trained on grey images.

    ``images`` are made once, before the first step; with ``every``, ``batch`` more are made each so
    many steps. Which they are follows from seed and teacher alone, unless a prior asks the student
    or looks at the batch, or the inner source has a state; to the bit only for the same ``batch``,
    as networks round differently in other batches. With ``sparse`` a plain transformer runs on a
    part of the patches (:mod:`mmdfkd.synthesis.sparse`).

    Args:
        source (Mapping | None): Config of the source of the start images, and of the draws that do
            not come from the bank. Without one, inversions start from noise and ``share`` is 1.
        priors (Sequence[Mapping] | str): Configs of the terms of the objective; those that do not
            suit the teacher are left out. ``'auto'`` takes the defaults of the teacher's report.
        images (int): Images made before the first step.
        every (int): Training steps between two further batches; 0 for none.
        batch (int): Images, or trajectories with ``mmdfkd.PatchRebirth``, optimised at once.
        steps (int): Gradient steps of each.
        lr (float): Root mean square of an image's change in the first step, of the pixel range.
        scales (Sequence[float]): Deviations of the gradients' blurs, as shares of the image's
            shorter side.
        optimizer (Mapping | None): Config of an ordinary optimiser in the place of ``lr`` and
            ``scales``; published inversions take ``dict(type='Adam', lr=0.1, betas=(0.5, 0.9))``.
        start (str | None): What an inversion starts from: ``'source'``; ``'noise'``; or ``'bank'``,
            an image of the same class that was made before (one of the source, or noise, while
            there is none). None takes the source where there is one.
        half (float): Share of the steps at half the resolution, in [0, 1); 0 for none. A network
            that takes one size only needs 0.
        views (Mapping | None): Config of the views; None shows the image itself at every step.
        checks (int): How often the image itself is asked in the last stage, for the best one.
        sparse (Mapping | None): Config of a sparse mode, ``mmdfkd.PatchDropping`` or
            ``mmdfkd.PatchRebirth``. Steps at full resolution are then on the kept patches alone.
        amp (bool): Run the networks in bfloat16 where that is safe; pixels stay in float32.
        share (float): Share of the draws that come from the bank.
        bank (Mapping | None): Further arguments of :class:`~mmdfkd.synthesis.bank.ReplayBank`.
        augment (Mapping | None): Config of the augmentation of the draws from the bank; None turns
            it off.

    Raises:
        ValueError: If an argument makes no sense.
    """

    title = 'Pixel inversion'
    purpose = 'pixel-inverted'

    def __init__(
        self,
        source: Mapping | None = None,
        priors: Sequence[Mapping] | str = (
            dict(type='mmdfkd.TargetPrior', weight=1.0),
            dict(type='mmdfkd.TotalVariationPrior', weight=0.02),
            dict(type='mmdfkd.BatchNormPrior', weight=1.0),
            dict(type='mmdfkd.AttentionPrior', weight=0.5),
            dict(type='mmdfkd.PatchSimilarityPrior', weight=0.1),
            dict(type='mmdfkd.PatchBoundaryPrior', weight=1.0),
        ),
        images: int = 256,
        every: int = 0,
        batch: int = 32,
        steps: int = 60,
        lr: float = 0.03,
        scales: Sequence[float] = (0.006, 0.016, 0.04),
        optimizer: Mapping | None = None,
        start: str | None = None,
        half: float = 1 / 3,
        views: Mapping | None = dict(type='mmdfkd.InversionViews'),
        checks: int = 6,
        sparse: Mapping | None = None,
        amp: bool = False,
        share: float = 0.5,
        bank: Mapping | None = None,
        augment: Mapping | None = dict(type='mmdfkd.LightAugment'),
    ) -> None:
        super().__init__(
            None if source is None else MODELS.build(source), images, every, batch, share, augment
        )
        name = type(self).__name__
        for key, value in dict(batch=batch, steps=steps, checks=checks).items():
            if value < 1:
                raise ValueError(f'{name}: {key} must be at least 1, got {value}.')
        if not 0 <= half < 1:
            raise ValueError(f'{name}: half is a share of the steps below 1, got {half}.')
        if start is None:
            start = 'noise' if source is None else 'source'
        if start not in _STARTS:
            raise ValueError(f'{name}: start must be one of {_STARTS}, got {start!r}.')
        if source is None and (start == 'source' or share < 1 or not images):
            raise ValueError(
                f'{name}: without a source, images start from noise and all draws come from the '
                f"bank: set start='noise' or 'bank', share=1 and images above 0, not {start!r}, "
                f'{share} and {images}; or give a source.'
            )
        if self.needs_items:
            raise ValueError(
                f'{name}: start images cannot come from the dataset '
                f'({type(self.source).__name__}): use a source that makes its own, such as '
                'mmdfkd.PooledSource.'
            )
        if optimizer is not None and 'lr' not in optimizer:
            raise ValueError(f'{name}: optimizer needs its lr, got {dict(optimizer)}.')
        self.priors = build_priors(priors, name, student=bool(every))
        self.steps = steps
        self.lr = lr
        self.scales = tuple(scales)
        self.optimizer_cfg = None if optimizer is None else dict(optimizer)
        self.start = start
        self.half = half
        self.views: InversionViews | None = None if views is None else TASK_UTILS.build(views)
        self.checks = checks
        self.sparse: SparseMode | None = None if sparse is None else TASK_UTILS.build(sparse)
        self.yields = 1 if self.sparse is None else self.sparse.images
        self.amp = amp
        self.bank_cfg = bank_settings('PixelInversionSource', bank)
        self.half_size: tuple[int, int] | None = None
        self._used: list[Prior] = list(self.priors)

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
            ValueError: If no prior suits the teacher, it cannot run on a part of its patches, or
                the bank does not fit.
        """
        super().prepare(teacher, seed=seed, image_size=image_size, device=device)
        self.prepare_inner(teacher)
        self._used = suited_priors(self.priors, teacher, self.title)
        check_suited(self._used, 'PixelInversionSource')
        self.half_size = half_size(self.image_size, patch_size(teacher.net)) if self.half else None
        if self.sparse is not None:
            reason = dense_only(teacher)
            if reason is not None:
                raise ValueError(f'PixelInversionSource: sparse does not suit: {reason}. Drop it.')
            grid = patch_grid(teacher, self.image_size)
            self.sparse.events(grid[0] * grid[1], self.steps - self._half_steps)
        whole = ceil(self.images / self.yields) * self.yields
        # Every batch may be rounded up to a whole number of trajectories in each process.
        spare = (get_dist_info()[1] - 1) * self.yields * ceil(whole / (self.batch * self.yields))
        capacity = max(whole + spare, 1024) if self.every else whole + spare
        self.open_bank(self.folder, **{'capacity': capacity, **self.bank_cfg})
        self.restore_bank()
        print_log(
            f'{self.title}: {whole} images once'
            + (f', {self.batch} every {self.every} steps' if self.every else '')
            + f', {self.steps} steps from {self.start} down {weighted_names(self._used)}',
            'current',
        )

    @property
    def _half_steps(self) -> int:
        """Steps at half the resolution."""
        return int(self.half * self.steps) if self.half_size else 0

    # Making images ------------------------------------------------------------------------------

    def success(self, made: Sequence[Mapping[str, float]]) -> str:
        """Whether the teacher sees what was wanted."""
        if 'pixels/recognised' in made[-1]:
            share = np.mean([logs['pixels/recognised'] for logs in made])
            return f'the teacher recognises {share:.0%} of them'
        return f'the objective ends at {np.mean([logs["pixels/after"] for logs in made]):.2f}'

    def finish(self, made: Sequence[Mapping[str, float]], total: int) -> None:
        """Say so where a classifier recognises nothing at all."""
        shares = [logs['pixels/recognised'] for logs in made if 'pixels/recognised' in logs]
        if shares and not any(shares):
            print_log(
                f'{self.title}: the teacher gives none of {total} images its class after '
                f'{self.steps} steps. Raise steps or lr, lower the weights of the other priors, or '
                f'check the image size ({self.image_size[0]} x {self.image_size[1]} px) against '
                'the one the teacher was trained at.',
                'current',
                logging.WARNING,
            )

    def make(
        self, count: int, teacher: Adapter, student: Adapter, iteration: int
    ) -> dict[str, float]:
        """Make ``count`` images, this process its part of them, and put them into the bank.

        Returns:
            dict[str, float]: The objective before and after and its terms; ``pixels/recognised``,
                the share of the images that a classifier gives their class; and what an image cost:
                ``pixels/seconds`` and ``pixels/passes`` of the teacher, each counted by the share
                of the image that it saw.
        """
        rank, world = get_dist_info()
        # As many for every process: terms of the batch are of all processes together.
        first, count = int(self.made) // self.yields, ceil(count / self.yields / world) * world
        serials = list(range(first, first + count))[rank::world]
        self.made += count * self.yields
        labels = [
            balanced_label('pixel-classes', self.seed, number, teacher.num_classes)
            for number in serials
        ]
        began = time.perf_counter()
        with frozen(teacher.net, student.net), counted(teacher.net, self.image_size) as passes:
            start = self.start_images(serials, np.array(labels))
            wanted = torch.tensor(labels, device=start.device)
            images, shown, logs = self.invert(start, wanted, serials, teacher, student)
        self.bank.append(images, shown, iteration=iteration)
        logs['pixels/seconds'] = (time.perf_counter() - began) / len(images)
        logs['pixels/passes'] = passes.dense / len(images)
        return logs

    @torch.no_grad()
    def start_images(self, serials: Sequence[int], labels: np.ndarray) -> Tensor:
        """What the inversions of these numbers start from: ``[B, 3, H, W]`` in [0, 1]."""
        found: dict[int, Tensor] = {}
        if self.start == 'bank' and len(self.bank):
            ids, shown = self.bank.shown()
            for position, (serial, label) in enumerate(zip(serials, labels, strict=True)):
                same = ids[shown == label]
                if len(same):
                    chosen = same[self.rng('pixel-bank', serial).integers(len(same))]
                    found[position] = self.bank.take(np.array([chosen]), self.device)[0][0]
        rest = [position for position in range(len(serials)) if position not in found]
        if rest and self.source is not None and self.start != 'noise':
            items = [dict(g=_OFFSET + serials[position]) for position in rest]
            found.update(zip(rest, self.source.draw_for(items, labels[rest]), strict=True))
        elif rest:
            shape = (3, *self.image_size)
            for position in rest:
                noise = self.rng('pixel-noise', serials[position]).standard_normal(
                    shape, np.float32
                )
                found[position] = torch.from_numpy(0.5 + _NOISE * noise).clamp(0, 1).to(self.device)
        return torch.stack([found[position] for position in range(len(serials))])

    @torch.enable_grad()
    def invert(
        self,
        start: Tensor,
        labels: Tensor,
        serials: Sequence[int],
        teacher: Adapter,
        student: Adapter,
    ) -> tuple[Tensor, Targets, dict[str, float]]:
        """Descend from images; both networks must be frozen.

        Args:
            start (Tensor): ``[B, 3, H, W]`` in [0, 1], left as they are.
            labels (Tensor): The class wanted of each, ``[B]``.
            serials (Sequence[int]): Their numbers, which all random parts depend on.
            teacher (Adapter): The teacher.
            student (Adapter): The student.

        Returns:
            tuple[Tensor, Targets, dict[str, float]]: Images ``[N, 3, H, W]`` uint8, ``N`` being
                ``B`` times the images of a trajectory; what they show; and values to log.

        Raises:
            FloatingPointError: If the objective is not finite.
        """
        halved = self._half_steps
        canvas = resized(start, self.half_size) if halved else start.detach().clone()
        run = InversionRun(
            self._used, self.views, self.sparse, self.amp, self.rng, self.seed, teacher, student
        )
        run.begin(canvas, labels, serials, self.steps)
        descent, first, best = self._descent(canvas), None, None
        grey = grey_images(canvas)
        kept, inside, scores, finished, events = None, None, 0.0, [], {}
        last = halved
        for step in range(self.steps):
            done = step - halved
            if halved and done == 0:
                canvas = resized(canvas, self.image_size)
                run.enlarge(canvas)
                descent = self._descent(canvas)
            if self.sparse is not None and done == 0:
                kept = run.all_patches(canvas)
                events = self.sparse.events(kept.shape[1], self.steps - halved)
                last += 0 if self.yields > 1 else max(events, default=0)
            if done in events:
                chosen, others = split_patches(kept, scores, events[done])
                if self.yields > 1:
                    finished.append(self.sparse.drawn(canvas, chosen, teacher))
                    kept = others
                else:
                    kept = chosen
                    canvas = self.sparse.drawn(canvas, kept, teacher)
                    # An optimiser holds on to the pixels it began with.
                    descent = self._descent(canvas) if self.sparse.dropped == 'mean' else descent
                inside, scores = pixels_of(kept, run.grid, self.image_size), 0.0
            if self.yields == 1 and step in self._checked(last):
                best = run.kept_best(best, canvas, kept, step)
            pixels = canvas.detach().requires_grad_()
            ctx = run.view(pixels, kept, step)
            terms, each = run.objective(ctx)
            check_finite(each.sum(), terms, self.title, step)
            first = each.detach() if first is None else first
            (gradient,) = torch.autograd.grad(each.sum(), [pixels])
            gradient = kept_grey(gradient, grey)
            if events and self.sparse.watched(events, done):
                scores = scores + self.sparse.scores(ctx, gradient, kept)
            slower = _LAST + (1 - _LAST) * (1 + math.cos(math.pi * step / self.steps)) / 2
            before = None if inside is None else canvas.clone()
            descent.step(canvas, gradient, slower, inside)
            if inside is not None:
                # What momentum would still move.
                canvas.copy_(torch.where(inside, canvas, before))
        if self.yields > 1:
            finished.append(self.sparse.drawn(canvas, kept, teacher))
            images, after = torch.cat(finished), each.detach()
        else:
            best = run.kept_best(best, canvas, kept, self.steps)
            after, images = best
        images = (images * 255).round().to(torch.uint8)
        logs = {
            f'pixels/{prior.name}': float(term.detach().mean()) for prior, term in terms.items()
        }
        logs['pixels/before'] = float(first.mean())
        logs['pixels/after'] = float(after.mean())
        shown, recognised = run.finish(images, self.steps)
        return images, shown, {**logs, **recognised}

    def _descent(self, canvas: Tensor) -> SmoothDescent | OptimizerDescent:
        """How the pixels move, from here on."""
        if self.optimizer_cfg is not None:
            return OptimizerDescent(self.optimizer_cfg)
        side = min(canvas.shape[-2:])
        return SmoothDescent([scale * side for scale in self.scales], self.lr)

    def _checked(self, first: int) -> set[int]:
        """Before which steps the image itself is asked; it is once more at the end."""
        return set(np.linspace(first, self.steps, self.checks, dtype=int).tolist())


def half_size(size: tuple[int, int], patch: tuple[int, int] | None) -> tuple[int, int] | None:
    """Half of an image's sides, in whole patches; None where an image has too few of them.

    Args:
        size (tuple[int, int]): Height and width in pixels.
        patch (tuple[int, int] | None): Of the teacher's patches, None where it has none.
    """
    parts = (1, 1) if patch is None else patch
    halves = tuple(
        max(2, round(side / 2 / part)) * part for side, part in zip(size, parts, strict=True)
    )
    return None if any(a >= b for a, b in zip(halves, size, strict=True)) else halves


@torch.no_grad()
def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images ``[B, 3, H, W]`` at another size, in [0, 1]."""
    return F.interpolate(images, size, mode='bilinear', antialias=True).clamp_(0, 1)
