"""The target class and the others, apart."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TargetSplit(NamedTuple):
    """Log-probabilities of a distribution, parted at a target class.

    Attributes:
        target: ``log p_y``, ``[...]``.
        rest: ``log(1 - p_y)``, ``[...]``.
        others: ``log(p_c / (1 - p_y))`` for ``c != y``, in order, ``[..., C - 1]``.
    """

    target: Tensor
    rest: Tensor
    others: Tensor


def split_target(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> TargetSplit:
    """Part ``softmax(z / T)`` at one class a row, in logarithms: nothing rounds to zero.

    Args:
        logits (Tensor): ``[..., C]`` of two classes or more.
        labels (Tensor): Class indices ``[...]``, int64.
        temperature (float): ``T > 0``. Defaults to 1.

    Returns:
        TargetSplit: The three parts.
    """
    z = logits / temperature
    is_target = F.one_hot(labels, z.shape[-1]).bool()
    others = z[~is_target].view(*z.shape[:-1], z.shape[-1] - 1)
    total, rest = torch.logsumexp(z, -1), torch.logsumexp(others, -1)
    target = z.gather(-1, labels[..., None])[..., 0]
    return TargetSplit(target - total, rest - total, others - rest[..., None])
