from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Matching, Probe, Targets

from .layouts import wanted_targets
from .objective import by_image, taps_of
from .priors.base import Prior
from .priors.context import SynthesisContext
from .sparse import SparseMode, encode_patches, patch_grid
from .training import keep_best
from .views import InversionViews


class InversionRun:
    """What a batch of inversions asks the networks, step by step.

    Args:
        priors (Sequence[Prior]): Terms of the objective.
        views (InversionViews | None): What each step sees; None for the images themselves.
        sparse (SparseMode | None): The sparse mode, if any.
        amp (bool): Whether the networks run in bfloat16.
        rng (Callable): Random numbers of a purpose and a number.
        seed (int): Of the run.
        teacher (Adapter): The teacher, frozen.
        student (Adapter): The student, frozen.
    """

    def __init__(
        self,
        priors: Sequence[Prior],
        views: InversionViews | None,
        sparse: SparseMode | None,
        amp: bool,
        rng: Callable[[str, int], np.random.Generator],
        seed: int,
        teacher: Adapter,
        student: Adapter,
    ) -> None:
        self.priors = priors
        self.views = views
        self.amp = amp
        self.rng = rng
        self.seed = seed
        self.teacher = teacher
        self.student = student
        taps = taps_of(priors, teacher) + (() if sparse is None else sparse.taps(teacher))
        self.taps = tuple(dict.fromkeys(taps))
        self.grid: tuple[int, int] | None = None

    def begin(self, canvas: Tensor, labels: Tensor, serials: Sequence[int], steps: int) -> None:
        """Decide what the images are to show.

        Args:
            canvas (Tensor): Where they start, ``[B, 3, H, W]``.
            labels (Tensor): The class wanted of each, ``[B]``.
            serials (Sequence[int]): Their numbers.
            steps (int): Gradient steps that there will be.
        """
        self.labels, self.serials = labels, list(serials)
        self.size = tuple(canvas.shape[-2:])
        with self._precision():
            targets, _ = wanted_targets(canvas, labels, self.teacher)
        self.boxes, self.box_labels = targets.boxes, targets.box_labels
        # A box that is mirrored in some steps is on the other side of the image, where other
        # queries look.
        mirrored = self.views is not None and self.views.flip > 0
        self.matching = None if mirrored else Matching.at(0, steps)

    def enlarge(self, canvas: Tensor) -> None:
        """Let the layouts follow the images to another size."""
        height, width = canvas.shape[-2:]
        if self.boxes is not None:
            y, x = height / self.size[0], width / self.size[1]
            self.boxes = [own * own.new_tensor([x, y, x, y]) for own in self.boxes]
        self.size = (height, width)

    def all_patches(self, canvas: Tensor) -> Tensor:
        """Numbers of all patches, of every image: ``[B, N]``."""
        self.grid = patch_grid(self.teacher, canvas.shape[-2:])
        count = self.grid[0] * self.grid[1]
        return torch.arange(count, device=canvas.device).repeat(len(canvas), 1)

    def _precision(self) -> AbstractContextManager:
        return torch.autocast(self.labels.device.type, torch.bfloat16, enabled=self.amp)

    def view(self, canvas: Tensor, kept: Tensor | None, step: int) -> SynthesisContext:
        """What the networks say of this step's views of the canvas.

        Args:
            canvas (Tensor): ``[B, 3, H, W]``.
            kept (Tensor | None): ``[B, K]`` numbers of the patches that the teacher sees.
            step (int): Number of steps done.
        """
        if self.views is None:
            return self.context(canvas, kept, step, matching=self.matching)
        rngs = [self.rng(f'pixel-view{step}', serial) for serial in self.serials]
        if kept is None:
            images, boxes = self.views(canvas, rngs, self.boxes)
            return self.context(images, None, step, canvas, boxes, self.matching)
        images, kept = self.views.of_patches(canvas, rngs, kept, self.grid)
        return self.context(images, kept, step, canvas)

    def context(
        self,
        images: Tensor,
        kept: Tensor | None,
        step: int,
        canvas: Tensor | None = None,
        boxes: list[Tensor] | None = None,
        matching: Matching | None = None,
    ) -> SynthesisContext:
        """What the networks say of images, the teacher of the kept patches alone.

        Args:
            images (Tensor): ``[B, 3, H, W]``.
            kept (Tensor | None): As in :meth:`view`, in ``images``.
            step (int): Number of steps done.
            canvas (Tensor, optional): What ``images`` are views of.
            boxes (list[Tensor], optional): The layouts in them.
            matching (Matching, optional): Which query each box has; None finds the best ones.
        """
        boxes = self.boxes if boxes is None else boxes
        ctx = SynthesisContext(
            images,
            self._shown(boxes, matching),
            self.teacher,
            self.student,
            None if self.boxes is None else Probe(boxes, [b.new_ones(len(b)) for b in boxes]),
            self.taps,
            canvas,
            seed=self.seed,
            # A trajectory of several images has one number.
            serials=self.serials * (len(images) // len(self.serials)),
            step=step,
        )
        if kept is not None:
            # Further passes that a prior asks for are of whole images.
            with self._precision():
                ctx.teacher_memory = encode_patches(self.teacher, images, kept, self.taps)
        return ctx

    def _shown(self, boxes: list[Tensor] | None, matching: Matching | None) -> Targets:
        if self.boxes is None:
            return Targets(labels=self.labels)
        return Targets(boxes=boxes, box_labels=self.box_labels, matching=matching)

    def objective(self, ctx: SynthesisContext) -> tuple[dict[Prior, Tensor], Tensor]:
        """The terms, and what each image is to lower: ``[B]``."""
        with self._precision():
            terms = {prior: prior(ctx) for prior in self.priors}
        return terms, by_image(terms, len(ctx.images)).float()

    @torch.no_grad()
    def kept_best(
        self, best: tuple | None, canvas: Tensor, kept: Tensor | None, step: int
    ) -> tuple[Tensor, Tensor]:
        """The least objective of each image itself so far, and a copy of the image."""
        _, values = self.objective(self.context(canvas, kept, step))
        return keep_best(best, canvas, values)

    @torch.no_grad()
    def finish(self, images: Tensor, steps: int) -> tuple[Targets, dict[str, float]]:
        """Show finished images to the priors, and say whether they show what was wanted.

        Args:
            images (Tensor): ``[N, 3, H, W]`` uint8; a whole number of times the batch.
            steps (int): Number of steps done.
        """
        self.labels = self.labels.repeat(len(images) // len(self.labels))
        ctx = self.context(images.float() / 255, None, steps)
        with self._precision():
            for prior in self.priors:
                prior.finished(ctx)
            if self.boxes is not None:
                return ctx.targets, {}
            right = ctx.teacher_response.logits.argmax(-1) == self.labels
        return ctx.targets, {'pixels/recognised': float(right.float().mean())}
