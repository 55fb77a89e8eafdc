"""Imitation of a dense one-stage detector, place by place."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_logits
from .kl import kl_divergence
from .query import corner_giou
from .reduce import at_least_float32, weighted_mean

# Mean weight below which boxes fade out: places none of which sees an object.
_EVIDENCE_FLOOR = 1e-3
# Of boxes that count, in square pixels, as mmdet has it: FCOS has boxes without any.
_LEAST_AREA = 1e-6


def quality_focal(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Quality focal loss with the teacher's probabilities (Li et al., NeurIPS 2020, eq. 3).

    ``sum_k |q_k - p_k|^beta (-q_k log p_k - (1 - q_k) log(1 - p_k))`` of each place, ``p`` and
    ``q`` the sigmoids of student and teacher; a weighted mean over places. CrossKD (Wang et al.,
    CVPR 2024) takes ``beta = 1``. Zero at agreement.

    Args:
        student_logits (Tensor): ``[..., classes]``.
        teacher_logits (Tensor): The same shape; no gradient flows into it.
        beta (float): Not negative; 0 leaves the cross-entropy. Defaults to 1.
        weight (Tensor, optional): ``[...]``, of each place.

    Returns:
        Tensor: Scalar; 0 times the student's logits without places or weights.

    Raises:
        ValueError: On unequal shapes or a negative ``beta``.
    """
    check_logits(student_logits, teacher_logits)
    if beta < 0:
        raise ValueError(f'quality_focal: beta must not be negative, as {beta}.')
    z = at_least_float32(student_logits)
    q = at_least_float32(teacher_logits.detach()).to(z).sigmoid()
    rows = F.binary_cross_entropy_with_logits(z, q, reduction='none')
    if beta:
        # The power of a difference of exactly 0 would have no finite gradient where beta < 1.
        rows = rows * (q - z.sigmoid()).abs().clamp_min(torch.finfo(z.dtype).tiny) ** beta
    return weighted_mean(rows.sum(-1), weight)


def localization_distillation(
    student_logits: Tensor, teacher_logits: Tensor, weight: Tensor, temperature: float = 10.0
) -> Tensor:
    """Divergence of distributions of box sides (LD, Zheng et al., CVPR 2022, eq. 4).

    ``T^2 sum_i w_i mean_4 KL(softmax(d^t_i / T) || softmax(d^s_i / T)) / sum_i w_i``. Where the
    mean weight is below 1e-3 the sum is divided by a thousandth of the number of places instead, so
    that the loss fades out with the evidence.

    Args:
        student_logits (Tensor): ``[..., 4, bins]``.
        teacher_logits (Tensor): The same shape; no gradient flows into it.
        weight (Tensor): ``[...]``, of each place.
        temperature (float): ``T > 0``. Defaults to 10, as published.

    Returns:
        Tensor: Scalar; 0 times the student's logits without places or weights.

    Raises:
        ValueError: On unequal shapes or a temperature that is not positive.
    """
    rows = kl_divergence(student_logits, teacher_logits, temperature, reduction='none')
    return weighted_mean(rows.mean(-1), weight, _EVIDENCE_FLOOR)


def dense_box_loss(student_boxes: Tensor, teacher_boxes: Tensor, weight: Tensor) -> Tensor:
    """``sum_i w_i (1 - GIoU_i) / sum_i w_i`` of paired boxes (Rezatofighi et al., CVPR 2019).

    Blind to how either network codes its boxes. Fades out as :func:`localization_distillation`.

    Args:
        student_boxes (Tensor): xyxy in pixels, ``[..., 4]``.
        teacher_boxes (Tensor): The same shape; no gradient flows into it.
        weight (Tensor): ``[...]``, of each place.

    Returns:
        Tensor: Scalar; 0 times the student's boxes without places or weights.

    Raises:
        ValueError: On unequal shapes.
    """
    if student_boxes.shape != teacher_boxes.shape:
        raise ValueError(
            f"The student's boxes {tuple(student_boxes.shape)} and the teacher's "
            f'{tuple(teacher_boxes.shape)} must have one shape: the same places.'
        )
    own = at_least_float32(student_boxes)
    other = at_least_float32(teacher_boxes.detach()).to(own)
    giou = corner_giou(own, other, _LEAST_AREA)
    return weighted_mean(1 - giou, weight, _EVIDENCE_FLOOR)


def with_moments_of(maps: Tensor, others: Tensor, eps: float = 1e-3) -> Tensor:
    """Each channel with mean and deviation of another's, over batch and places (CrossKD).

    ``(x - m) sqrt((v_t + e_t) / (v + e)) + m_t`` with means ``m``, variances ``v``, and ``e`` the
    share ``eps`` of the mean variance over channels (and 1e-6): published is an absolute one, by
    which a channel that hardly varies, of synthetic images say, is blown up. Equal maps stay so.

    Args:
        maps (Tensor): ``[B, C, H, W]``; its own moments are part of the graph.
        others (Tensor): ``[B, C, H, W]``; no gradient flows into it.
        eps (float): See above. Defaults to 1e-3.

    Returns:
        Tensor: ``[B, C, H, W]``, in the type of ``others``.
    """
    places = (0, 2, 3)
    own, other = at_least_float32(maps), at_least_float32(others.detach())
    means, scales = [], []
    for x in (own, other):
        mean = x.mean(places, keepdim=True)
        variance = (x - mean).square().mean(places, keepdim=True)
        means.append(mean)
        scales.append(variance + eps * variance.mean() + 1e-6)
    return ((own - means[0]) * (scales[1] / scales[0]).sqrt() + means[1]).to(others)
