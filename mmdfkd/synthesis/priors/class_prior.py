from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext

_MODES = ('hard', 'soft', 'self')


@MODELS.register_module()
class ClassPrior(Prior):
    """The teacher is to see a class: the one wanted, mostly that one, or whichever it sees.

    * ``'hard'``: cross-entropy with the target class.
    * ``'soft'``: ``KL(t || p)`` with a target ``t`` that gives the class a share drawn from
      ``sure`` and the others the softmax of normal numbers, after SARDFQ (ICCV 2025). There the
      class has a logit drawn from [5, 10], which is a share of .91 among 10 classes and of .08 to
      .93 among 1000; here the share itself is drawn. ``t`` is a function of seed and image.
    * ``'self'``: ``-log max p``, cross-entropy with what the teacher sees (DAFL, ICCV 2019).
      Needs no target, and may end in one class: take :class:`InformationEntropyPrior` with it.

    Args:
        weight (float): Factor of the term in the objective.
        mode (str): As above.
        sure (Sequence[float]): Least and most share of the target class in a soft target, in
            (0, 1).

    Raises:
        ValueError: On an unknown mode, or shares that are none.
    """

    name = 'class'

    def __init__(
        self, weight: float = 1.0, mode: str = 'hard', sure: Sequence[float] = (0.5, 0.95)
    ) -> None:
        super().__init__(weight)
        if mode not in _MODES:
            raise ValueError(f'ClassPrior: mode must be one of {_MODES}, not {mode!r}.')
        if len(sure) != 2 or not 0 < sure[0] <= sure[1] < 1:
            raise ValueError(f'ClassPrior: sure is (least, most) in (0, 1), not {tuple(sure)}.')
        self.mode = mode
        self.sure = tuple(sure)

    def unsuited(self, teacher: Adapter) -> str | None:
        """Classes of whole images are a classifier's."""
        if self.mode == 'self' or teacher.family == 'classifier':
            return None
        return (
            f'a {teacher.family} teacher names no class of a whole image; mmdfkd.TargetPrior asks '
            "for a layout, mode='self' for sure answers at its proposals"
        )

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``, at least zero.

        Raises:
            ValueError: If the images have no target classes, and the mode needs them.
        """
        logits = at_least_float32(ctx.teacher_response.logits)
        if self.mode == 'self':
            return ctx.by_image(-logits.log_softmax(-1).amax(-1))
        labels = ctx.targets.labels
        if labels is None:
            raise ValueError(
                f"ClassPrior: mode='{self.mode}' needs target classes, and the source sets none; "
                "mode='self' needs none."
            )
        if self.mode == 'hard':
            return F.cross_entropy(logits, labels, reduction='none')
        targets = [
            soft_target(ctx.rng('soft-target', i), int(label), logits.shape[-1], self.sure)
            for i, label in enumerate(labels)
        ]
        target = torch.from_numpy(np.stack(targets)).to(logits)
        return F.kl_div(logits.log_softmax(-1), target, reduction='none').sum(-1)


def soft_target(
    rng: np.random.Generator, label: int, classes: int, sure: Sequence[float]
) -> np.ndarray:
    """A distribution that names one class: ``[classes]``, float64.

    Args:
        rng (np.random.Generator): Random numbers of the image.
        label (int): The class.
        classes (int): How many there are.
        sure (Sequence[float]): Range of its share.
    """
    share = rng.uniform(*sure)
    others = np.exp(rng.standard_normal(classes))
    others[label] = 0
    if classes > 1:
        others *= (1 - share) / others.sum()
    others[label] = 1 - others.sum()
    return others
