"""Relational knowledge distillation: distances and angles between samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reduce import at_least_float32, weighted_mean

_EPS = 1e-12  # of a squared distance: only for samples that coincide


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distances between samples, in units of their mean (RKD-D, Park et al., CVPR 2019, eq. 3-5).

    ``mean_{i != j} h(|s_i - s_j| / m_s - |t_i - t_j| / m_t)``: ``m`` is the mean distance of the
    batch, ``h`` Huber's loss with threshold 1. Invariant to scale, offset and rotation of either
    network's features; sees the batch (of one rank). Published weight 25. The release also
    averages over the ``B`` zeros of ``i = j``: its loss is ``(B - 1) / B`` of ours.

    Args:
        student (Tensor): ``[B, D_s]``: embeddings, pooled tokens.
        teacher (Tensor): ``[B, D_t]``; no gradient flows into it.

    Returns:
        Tensor: Scalar; 0 times the student's features for fewer than two samples.

    Raises:
        ValueError: Unless both are vectors of the same samples.
    """
    _check(student, teacher)
    if len(student) < 2:
        return 0.0 * student.sum()
    other = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    d_s = _edges(student).square().sum(-1).add(_EPS).sqrt()[other]
    d_t = _edges(teacher.detach()).square().sum(-1).add(_EPS).sqrt()[other].to(d_s)
    return F.smooth_l1_loss(d_s / d_s.mean(), d_t / d_t.mean())


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Angles between triples of samples (RKD-A, Park et al., CVPR 2019, eq. 6-8).

    ``mean_{i, j, k distinct} h(cos(s_i, s_j, s_k) - cos(t_i, t_j, t_k))`` with the angle at
    ``j`` and Huber's loss ``h`` with threshold 1. Invariant to scale, offset and rotation of either
    network's features; sees the batch (of one rank). Published weight 50. The release averages over
    all ``B^3`` triples: its loss is ``(B - 1) (B - 2) / B^2`` of ours. Memory grows with ``B^3``.

    Args:
        student (Tensor): ``[B, D_s]``: embeddings, pooled tokens.
        teacher (Tensor): ``[B, D_t]``; no gradient flows into it.

    Returns:
        Tensor: Scalar; 0 times the student's features for fewer than three samples.

    Raises:
        ValueError: Unless both are vectors of the same samples.
    """
    _check(student, teacher)
    count = len(student)
    if count < 3:
        return 0.0 * student.sum()
    cos_s = _angles(student)
    cos_t = _angles(teacher.detach()).to(cos_s)
    other = ~torch.eye(count, dtype=torch.bool, device=student.device)
    distinct = other[:, :, None] & other[:, None, :] & other[None, :, :]
    return weighted_mean(F.smooth_l1_loss(cos_s, cos_t, reduction='none'), distinct)


def _edges(x: Tensor) -> Tensor:
    """Differences ``x_i - x_j`` of all pairs, ``[B, B, D]``."""
    x = at_least_float32(x)
    return x[:, None] - x[None]


def _angles(x: Tensor) -> Tensor:
    """Cosine at ``j`` between the directions to ``i`` and to ``k``, as ``[j, i, k]``."""
    # Not under autocast: a product of halves.
    with torch.autocast(x.device.type, enabled=False):
        edges = _edges(x).transpose(0, 1)  # [j, i]: x_i - x_j
        edges = edges / edges.square().sum(-1, keepdim=True).add(_EPS).sqrt()
        return edges @ edges.transpose(1, 2)


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(
            'RKD compares vectors [B, D] of the same samples, not '
            f'{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher: '
            'pool tokens or maps first.'
        )
