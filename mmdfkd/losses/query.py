"""Imitation of a DETR's answers, query by query."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_logits
from .reduce import at_least_float32, weighted_mean

# Mean weight below which boxes fade out: queries none of which sees an object.
_EVIDENCE_FLOOR = 1e-3


def foreground(teacher_logits: Tensor, sigmoid: bool) -> Tensor:
    """The highest probability of any class: ``w = max_k p^t_k`` (KD-DETR, Wang et al., CVPR 2024).

    Args:
        teacher_logits (Tensor): ``[..., classes]`` of sigmoids, or ``[..., classes + 1]`` of a
            softmax, background last.
        sigmoid (bool): Which of both.

    Returns:
        Tensor: ``[...]`` in [0, 1], without gradient.
    """
    z = at_least_float32(teacher_logits.detach())
    return z.sigmoid().amax(-1) if sigmoid else z.softmax(-1)[..., :-1].amax(-1)


def query_class_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weight: Tensor | None,
    sigmoid: bool,
    temperature: float = 1.0,
) -> Tensor:
    """Divergence of the classes of paired queries.

    Softmax: ``T^2 KL(p^t || p^s)``, background included, as published (KD-DETR). Sigmoid:
    ``T^2 sum_k KL(Bernoulli(p^t_k) || Bernoulli(p^s_k))``, the divergence of what such a head
    predicts, where the published code takes the softmax all the same. A weighted mean over queries,
    zero at agreement; where the mean weight is below 1e-3 it fades out with the evidence, as
    :func:`query_box_loss` does.

    Args:
        student_logits (Tensor): ``[..., C]``.
        teacher_logits (Tensor): The same shape; no gradient flows into it.
        weight (Tensor, optional): ``[...]``, of each query.
        sigmoid (bool): Whether each class is a sigmoid of its own.
        temperature (float): ``T > 0``. Defaults to 1.

    Returns:
        Tensor: Scalar; 0 times the student's logits without queries or weights.

    Raises:
        ValueError: On unequal shapes or a temperature that is not positive.
    """
    check_logits(student_logits, teacher_logits, temperature)
    z_s = at_least_float32(student_logits) / temperature
    z_t = at_least_float32(teacher_logits.detach()).to(z_s) / temperature
    if sigmoid:
        on = z_t.sigmoid() * (F.logsigmoid(z_t) - F.logsigmoid(z_s))
        off = (-z_t).sigmoid() * (F.logsigmoid(-z_t) - F.logsigmoid(-z_s))
        rows = (on + off).sum(-1)
    else:
        log_s, log_t = z_s.log_softmax(-1), z_t.log_softmax(-1)
        rows = F.kl_div(log_s, log_t, reduction='none', log_target=True).sum(-1)
    return temperature**2 * weighted_mean(rows, weight, _EVIDENCE_FLOOR)


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """GIoU of boxes ``(cx, cy, w, h)`` (Rezatofighi et al., CVPR 2019): ``[..., 4]`` to ``[...]``.

    Shapes are broadcast. Boxes without area have an IoU of 0.
    """
    corners = (
        torch.cat([x[..., :2] - x[..., 2:] / 2, x[..., :2] + x[..., 2:] / 2], -1)
        for x in (boxes, others)
    )
    return corner_giou(*corners)


def corner_giou(boxes: Tensor, others: Tensor, eps: float | None = None) -> Tensor:
    """GIoU of xyxy boxes: ``[..., 4]`` to ``[...]``; sides that passed each other meet.

    Args:
        boxes (Tensor): ``[..., 4]``.
        others (Tensor): ``[..., 4]``.
        eps (float, optional): Least area that counts, in the unit of the boxes squared. Defaults to
            the type's precision, which suits shares of an image.
    """
    (a0, a1), (b0, b1) = (
        (x[..., :2], torch.maximum(x[..., 2:], x[..., :2])) for x in (boxes, others)
    )
    eps = torch.finfo(boxes.dtype).eps if eps is None else eps
    both = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp_min(0).prod(-1)
    union = ((a1 - a0).prod(-1) + (b1 - b0).prod(-1) - both).clamp_min(eps)
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(-1).clamp_min(eps)
    return both / union - (hull - union) / hull


def query_box_loss(
    student_boxes: Tensor, teacher_boxes: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Distances of the boxes of paired queries (KD-DETR).

    ``sum_i w_i mean_4 |b^s_i - b^t_i| / sum_i w_i`` and ``sum_i w_i (1 - GIoU_i) / sum_i w_i``.
    Where the mean weight is below 1e-3 the sums are divided by a thousandth of the number of
    queries instead, so that the losses fade out with the evidence.

    Args:
        student_boxes (Tensor): ``(cx, cy, w, h)`` in shares of the image, ``[..., 4]``.
        teacher_boxes (Tensor): The same shape; no gradient flows into it.
        weight (Tensor): ``[...]``, of each query.

    Returns:
        tuple[Tensor, Tensor]: L1 and ``1 - GIoU``, scalars; 0 times the student's boxes without
        queries or weights.

    Raises:
        ValueError: On unequal shapes.
    """
    if student_boxes.shape != teacher_boxes.shape:
        raise ValueError(
            f"The student's boxes {tuple(student_boxes.shape)} and the teacher's "
            f'{tuple(teacher_boxes.shape)} must have one shape: the same queries.'
        )
    own = at_least_float32(student_boxes)
    other = at_least_float32(teacher_boxes.detach()).to(own)
    l1 = weighted_mean((own - other).abs().mean(-1), weight, _EVIDENCE_FLOOR)
    giou = weighted_mean(1 - generalized_iou(own, other), weight, _EVIDENCE_FLOOR)
    return l1, giou


def query_cost(
    student_logits: Tensor,
    student_boxes: Tensor,
    teacher_logits: Tensor,
    teacher_boxes: Tensor,
    sigmoid: bool,
    weights: tuple[float, float, float] = (1.0, 5.0, 2.0),
) -> Tensor:
    """Cost of pairing each of a student's queries with each of its teacher's.

    ``c CE + l L1 - g GIoU`` (DETRDistill, Chang et al., ICCV 2023): cross-entropy with the
    teacher's probabilities (of sigmoids a sum over the classes), L1 summed over the coordinates.

    Args:
        student_logits (Tensor): ``[N, Q, C]``.
        student_boxes (Tensor): ``(cx, cy, w, h)`` in shares of the image, ``[N, Q, 4]``.
        teacher_logits (Tensor): ``[N, P, C]``.
        teacher_boxes (Tensor): ``[N, P, 4]``.
        sigmoid (bool): Whether each class is a sigmoid of its own.
        weights (tuple[float, float, float]): ``c``, ``l`` and ``g``.

    Returns:
        Tensor: ``[N, Q, P]``, without gradient.
    """
    z_s, z_t, b_s, b_t = (
        at_least_float32(x.detach())
        for x in (student_logits, teacher_logits, student_boxes, teacher_boxes)
    )
    if sigmoid:
        p = z_t.sigmoid()
        cls = -F.logsigmoid(z_s) @ p.mT - F.logsigmoid(-z_s) @ (1 - p).mT
    else:
        cls = -z_s.log_softmax(-1) @ z_t.softmax(-1).mT
    giou = generalized_iou(b_s[:, :, None], b_t[:, None])
    return weights[0] * cls + weights[1] * torch.cdist(b_s, b_t, p=1) - weights[2] * giou
