"""Feature imitation, value by value or by direction."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reduce import at_least_float32, weighted_mean


def masked_mimic(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    dim: int = 1,
    normalize: bool = True,
) -> Tensor:
    """Weighted mean squared error of features, as in G2SD (Huang et al., CVPR 2023).

    ``sum_p m_p e_p / sum_p m_p`` over places ``p``, with ``e_p = mean_c (F^s_pc - F^t_pc)^2``.
    Normalised, it is divided by the same mean of ``(F^t_pc)^2``: the loss is then a share of the
    teacher's energy, 1 for a student that says zero everywhere, and its weight holds for any
    teacher.

    Args:
        student (Tensor): Channels at ``dim``, places elsewhere: maps ``[N, C, H, W]``, tokens
            ``[N, L, C]``, vectors ``[N, C]``.
        teacher (Tensor): The same shape; no gradient flows into it.
        mask (Tensor, optional): Non-negative weight of each place, of the features' shape with 1
            channel. None weighs every place alike.
        dim (int): Where the channels are. Defaults to 1.
        normalize (bool): Whether to divide by the teacher's energy. Defaults to True.

    Returns:
        Tensor: Scalar; 0 times the student's features where there is no place or no weight.

    Raises:
        ValueError: On unequal shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'Features of one shape can be compared, not {tuple(student.shape)} with '
            f'{tuple(teacher.shape)}; align the widths and resize the maps first.'
        )
    f_s, f_t = at_least_float32(student), at_least_float32(teacher.detach())
    error = weighted_mean((f_s - f_t).square().mean(dim, keepdim=True), mask)
    if not normalize:
        return error
    energy = weighted_mean(f_t.square().mean(dim, keepdim=True), mask)
    return error / energy.clamp_min(torch.finfo(torch.float32).eps)


def cosine_distance(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    dim: int = 1,
) -> Tensor:
    """Weighted mean of ``1 - cos(F^s_p, F^t_p)`` over places, as in RT-DETRv4 (2025).

    Args:
        student (Tensor): Channels at ``dim``, places elsewhere.
        teacher (Tensor): The same shape; no gradient flows into it.
        mask (Tensor, optional): Non-negative weight of each place, of the features' shape with 1
            channel.
        dim (int): Where the channels are. Defaults to 1.

    Returns:
        Tensor: Scalar in [0, 2]; 0 times the student's features without a place or a weight.

    Raises:
        ValueError: On unequal shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'Features of one shape can be compared, not {tuple(student.shape)} with '
            f'{tuple(teacher.shape)}; align the widths and resize the maps first.'
        )
    f_s, f_t = at_least_float32(student), at_least_float32(teacher.detach())
    distance = 1 - F.cosine_similarity(f_s, f_t, dim=dim, eps=1e-6)
    return weighted_mean(distance.unsqueeze(dim), mask)
