import math

import torch
from torch import Tensor

from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext


@MODELS.register_module()
class JensenShannonPrior(Prior):
    """The student is to disagree with the teacher: Adaptive DeepInversion's adversary.

    ``1 - JS(p_T, p_S) / log 2`` of softened answers (Yin et al., CVPR 2020; weight 0.2).
    Computed from logarithms: the release clamps probabilities to [0.01, 0.99], which leaves no
    gradient in the tails of many classes. Unlike :class:`DivergencePrior` it is bounded, and it
    also works where both already differ. At a detector's proposals the rows are weighted by
    objectness.

    Args:
        weight (float): Factor of the term in the objective.
        temperature (float): Both distributions are softened by it.
    """

    name = 'jensen_shannon'
    asks_student = True
    role = 'adversary'

    def __init__(self, weight: float = 1.0, temperature: float = 3.0) -> None:
        super().__init__(weight)
        if temperature <= 0:
            raise ValueError(f'JensenShannonPrior: temperature is positive, got {temperature}.')
        self.temperature = temperature

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]`` in [0, 1]."""
        divergence = jensen_shannon(
            ctx.teacher_response.logits / self.temperature,
            ctx.student_response.logits / self.temperature,
        )
        return ctx.by_image(1 - divergence)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence in bits of two sets of logits ``[..., C]``: ``[...]`` in [0, 1]."""
    log_p = at_least_float32(first).log_softmax(-1)
    log_q = at_least_float32(second).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    both = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return both.sum(-1) / (2 * math.log(2))
