"""Imitation of a dense one-stage detector, place by place."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_logits
from .kl import kl_divergence
from .pkd import standardize
from .query import generalized_iou
from .reduce import at_least_float32, weighted_mean

# Mean weight below which boxes fade out: places none of which sees an object.
_EVIDENCE_FLOOR = 1e-3


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
        student_boxes (Tensor): xyxy, ``[..., 4]``.
        teacher_boxes (Tensor): The same shape and unit; no gradient flows into it.
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
    giou = generalized_iou(as_centres(own), as_centres(other))
    return weighted_mean(1 - giou, weight, _EVIDENCE_FLOOR)


def as_centres(boxes: Tensor) -> Tensor:
    """Boxes ``[..., 4]`` of xyxy as ``(cx, cy, w, h)``; a size is 0 where sides passed."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, (high - low).clamp_min(0)], -1)


def with_moments_of(maps: Tensor, others: Tensor) -> Tensor:
    """Each channel with mean and deviation of another's, over batch and places (CrossKD).

    Args:
        maps (Tensor): ``[B, C, H, W]``; its own mean and deviation are part of the graph. A channel
            that does not vary has no gradient, where the published division has an infinite one.
        others (Tensor): ``[B, C, H, W]``; no gradient flows into it.

    Returns:
        Tensor: ``[B, C, H, W]``, in the type of ``others``.
    """
    own, other = at_least_float32(maps), at_least_float32(others.detach())
    places = (0, 2, 3)
    deviation = other.std(places, correction=0, keepdim=True)
    mean = other.mean(places, keepdim=True)
    return (standardize(own, 1e-3) * deviation + mean).to(others)
