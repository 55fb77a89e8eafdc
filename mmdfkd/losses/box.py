"""Imitation of box regression."""

import torch.nn.functional as F
from torch import Tensor

from .reduce import at_least_float32, weighted_mean

# Mean weight below which the regression fades out: proposals with no object in any of them.
_EVIDENCE_FLOOR = 1e-3


def box_delta_loss(
    student_deltas: Tensor, teacher_deltas: Tensor, weight: Tensor, beta: float = 1.0
) -> Tensor:
    """Weighted smooth L1 distance of box deltas (Girshick, *Fast R-CNN*, ICCV 2015, eq. 3).

    ``sum_ik w_ik mean_4 l(d^s_ik - d^t_ik) / sum_ik w_ik``, ``l(x) = x^2 / (2 beta)`` below
    ``beta``, else ``|x| - beta / 2``. Where the mean weight per row is below 1e-3 the sum is
    divided by a thousandth of the number of rows instead, so the loss fades out with the evidence.

    Args:
        student_deltas (Tensor): ``[n, 4]``, or ``[n, 4 * K]`` with a box for each class.
        teacher_deltas (Tensor): The same shape and units; no gradient flows into it.
        weight (Tensor): Non-negative ``[n, K]``: how much the teacher believes in each class. Boxes
            for each class are weighted by it; boxes without class by its sum over classes. ``[n]``
            means ``[n, 1]``.
        beta (float): Where the square turns linear, in the deltas' units. Defaults to 1.

    Returns:
        Tensor: Scalar; 0 times the student's deltas where there is no box or no weight.

    Raises:
        ValueError: If the deltas differ in shape or do not fit the number of classes.
    """
    if student_deltas.shape != teacher_deltas.shape:
        raise ValueError(
            f"The student's deltas {tuple(student_deltas.shape)} and the teacher's "
            f'{tuple(teacher_deltas.shape)} differ in shape: give both heads the same classes and '
            'the '
            'same reg_class_agnostic.'
        )
    rows, width = student_deltas.shape
    if weight.dim() == 1:
        weight = weight[:, None]
    if width == 4:
        weight = weight.sum(1, keepdim=True)
    elif width != 4 * weight.shape[1]:
        raise ValueError(
            f'Deltas of width {width} are neither 4 nor 4 for each of {weight.shape[1]} classes.'
        )
    d_s = at_least_float32(student_deltas).reshape(rows, weight.shape[1], 4)
    d_t = at_least_float32(teacher_deltas.detach()).reshape(d_s.shape).to(d_s)
    distance = F.smooth_l1_loss(d_s, d_t, reduction='none', beta=beta).mean(-1)
    # The floor counts rows, however many classes share the weight of one.
    return weighted_mean(distance, weight, floor=_EVIDENCE_FLOOR / weight.shape[1])
