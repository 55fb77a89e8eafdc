from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Memory, Probe, Response, Targets
from mmdfkd.datasets.renderers.stream import stream


@dataclass
class SynthesisContext:
    """What priors look at: one batch of images under optimisation and what the networks say of it.

    Everything is computed when first asked for, and once: a prior that needs the student's answer
    pays for it, another one then has it for nothing. Differentiable to the images.

    Attributes:
        images: RGB in [0, 1], ``[B, 3, H, W]``: what the networks see.
        targets: What the images are to show.
        teacher: The teacher, frozen.
        student: The student, frozen, or None.
        probe: Where detectors are asked, fixed while the images change; None for classifiers.
        taps: Names of the teacher's modules whose outputs the priors need.
        canvas: The images under optimisation themselves, where ``images`` are views of them.
        seed: Seed of the run, for priors with random parts.
        serials: The number of each image, which its random parts depend on; None counts the batch.
        step: Number of gradient steps done, for random parts that change while an image is made.
    """

    images: Tensor
    targets: Targets
    teacher: Adapter
    student: Adapter | None = None
    probe: Probe | None = None
    taps: Sequence[str] = ()
    canvas: Tensor | None = None
    seed: int = 0
    serials: Sequence[int] | None = None
    step: int = 0

    def rng(self, purpose: str, position: int, *key: int) -> np.random.Generator:
        """Random numbers that are a function of the seed and the image, for one purpose.

        Args:
            purpose (str): What they are for.
            position (int): Of the image in the batch.
            *key (int): Further non-negative numbers they depend on, such as ``step``.
        """
        serial = position if self.serials is None else int(self.serials[position])
        return stream(purpose, self.seed, serial, *key)

    @property
    def pixels(self) -> Tensor:
        """What terms of the pixels alone look at."""
        return self.images if self.canvas is None else self.canvas

    @cached_property
    def teacher_memory(self) -> Memory:
        """The teacher's features and taps."""
        return self.teacher.encode(self.images, self.taps)

    @cached_property
    def teacher_response(self) -> Response:
        """The teacher's answer at the probe."""
        return self.teacher.answer(self.teacher_memory, self.probe)

    @cached_property
    def student_response(self) -> Response:
        """The student's answer at the same probe."""
        if self.student is None:
            raise ValueError('SynthesisContext: a prior asks for the student, and there is none.')
        return self.student.answer(self.student.encode(self.images), self.probe)

    def by_image(self, rows: Tensor) -> Tensor:
        """Average ``rows`` over each image, weighted by the probe's scores where there is a probe.

        Args:
            rows (Tensor): One value for each row of the logits: ``[B]``, or ``[sum K_i]`` at a
                probe.

        Returns:
            Tensor: ``[B]``; zero for an image without rows.
        """
        if self.probe is None:
            return rows
        parts = rows.split([len(boxes) for boxes in self.probe.boxes])
        means = [
            (part * score).sum() / score.sum().clamp_min(1e-6)
            for part, score in zip(parts, self.probe.scores, strict=True)
        ]
        return torch.stack(means)
