"""Cosine relations between vectors."""

import torch
from torch import Tensor

from .reduce import at_least_float32, weighted_mean

_EPS = 1e-6  # length below which a vector has no direction


def cosine_gram(x: Tensor) -> Tensor:
    """Cosines between all rows: ``M(X) = X X^T`` of rows of length 1.

    In float32 also under autocast: differences of cosines are squared, and those that matter are
    smaller than the rounding of a half.

    Args:
        x (Tensor): ``[..., n, D]``.

    Returns:
        Tensor: ``[..., n, n]`` in [-1, 1]; 0, without gradient, for rows of no length.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        length = x.norm(dim=-1, keepdim=True)
        # No direction, no relation, and no gradient of 1 / eps.
        x = torch.where(length > _EPS, x / length.clamp_min(_EPS), torch.zeros_like(x))
        return x @ x.transpose(-1, -2)


def gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of cosine relations, over all pairs of rows.

    Args:
        student (Tensor): ``[..., n, D_s]``.
        teacher (Tensor): ``[..., n, D_t]``; no gradient flows into it.

    Returns:
        Tensor: Scalar in [0, 4]; 0 times the student's rows where there are none.
    """
    m_s = cosine_gram(student)
    return weighted_mean((m_s - cosine_gram(teacher.detach()).to(m_s)).square())
