import math

import torch
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext
from .ranks import summed_over_ranks


@MODELS.register_module()
class InformationEntropyPrior(Prior):
    """All classes are to occur: the entropy of the teacher's mean answer over the batch.

    ``1 - H(p) / log C`` with ``p`` the mean of the softmax over the images of all processes (DAFL,
    Chen et al., ICCV 2019, there ``-H`` in decimal logarithms: at 10 classes its weight 5
    means the same here). At a detector's proposals the mean is weighted by objectness, and the
    background is left out.

    Batch-level: the fewer images, the less it can be met. With ``B`` images of all processes, fewer
    than ``C`` classes and sure answers it cannot fall below ``1 - log B / log C``: it serves
    batches of several images a class. Gradients are those of one process with all images.
    """

    name = 'information_entropy'
    role = 'diversity'

    def unsuited(self, teacher: Adapter) -> str | None:
        """One class has no entropy."""
        if teacher.num_classes > 1:
            return None
        return 'the teacher knows one class, which always occurs; mmdfkd.TargetPrior asks for it'

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """Scalar in [0, 1]."""
        response = at_least_float32(ctx.teacher_response.logits)
        probabilities = response.softmax(-1)[:, : ctx.teacher.num_classes]
        if ctx.probe is not None:
            scores = torch.cat(list(ctx.probe.scores)).to(probabilities)
            probabilities = probabilities * scores[:, None]
        return information_entropy(probabilities)


def information_entropy(probabilities: Tensor) -> Tensor:
    """How far the mean over all processes is from uniform, ``1 - H / log C``: scalar in [0, 1].

    Args:
        probabilities (Tensor): ``[N, C]``, non-negative, ``C > 1``; rows count by their sums.
    """
    total = summed_over_ranks(probabilities.sum(0))
    mean = total / total.sum().clamp_min(1e-12)
    entropy = -(mean * mean.clamp_min(1e-12).log()).sum()
    return 1 - entropy / math.log(len(mean))
