"""Decoupled knowledge distillation."""

from torch import Tensor

from .checks import check_logits, index_labels
from .non_target import split_target
from .reduce import at_least_float32, weighted_mean


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Decoupled knowledge distillation (DKD, Zhao et al., CVPR 2022, eq. 7).

    ``T^2 * mean_b(alpha * TCKD + beta * NCKD)``: ``TCKD`` is the divergence of the two-class
    distributions ``(p_y, 1 - p_y)``, ``NCKD`` that of the other classes among themselves,
    ``p_c / (1 - p_y)``. The ordinary divergence is ``alpha = 1`` and ``beta = 1 - p^t_y``, row by
    row; a constant ``beta`` keeps the teacher's dark knowledge where it is sure.

    Args:
        student_logits (Tensor): ``[..., C]``.
        teacher_logits (Tensor): ``[..., C]``; no gradient flows into it.
        labels (Tensor, optional): Target classes ``[...]``. Defaults to the teacher's first class:
            the paper's true labels do not exist without data.
        alpha (float): Weight of the target class. Defaults to 1, as published.
        beta (float): Weight of the others. Defaults to 8, as published for CIFAR-100 (``T = 4``);
            ImageNet: 0.5 with ``T = 1``. The release is a batch mean as well: no conversion.
        temperature (float): ``T > 0``. Defaults to 4.
        weight (Tensor, optional): ``[...]``, for a weighted mean over the rows.

    Returns:
        Tensor: Scalar, zero where the two agree; 0 times the student's logits without rows.

    Raises:
        ValueError: On unequal shapes, a temperature that is not positive, fewer than two classes
            or labels that are no class indices.
    """
    check_logits(student_logits, teacher_logits, temperature)
    labels = index_labels(labels, teacher_logits, 'dkd')
    s = split_target(at_least_float32(student_logits), labels, temperature)
    t = split_target(at_least_float32(teacher_logits.detach()), labels, temperature)
    target = t.target.exp() * (t.target - s.target) + t.rest.exp() * (t.rest - s.rest)
    others = (t.others.exp() * (t.others - s.others)).sum(-1)
    return temperature**2 * weighted_mean(alpha * target + beta * others, weight)
