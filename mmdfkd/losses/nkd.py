"""Normalised knowledge distillation."""

from torch import Tensor

from .checks import check_logits, index_labels
from .non_target import split_target
from .reduce import at_least_float32, weighted_mean


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    gamma: float = 1.0,
    temperature: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Normalised knowledge distillation (NKD, Yang et al., ICCV 2023; papers.md Part 3, row 10).

    ``mean_b(-t_y log s_y - gamma T^2 sum_{c != y} T^_c log S^_c)``: a cross-entropy of the target
    class, weighted by the teacher's trust in it, and one of the other classes, each distribution
    of them normalised to one. The temperature softens the second term only.

    Args:
        student_logits (Tensor): ``[..., C]``.
        teacher_logits (Tensor): ``[..., C]``; no gradient flows into it.
        labels (Tensor, optional): Target classes ``[...]``. Defaults to the teacher's first class.
        gamma (float): Weight of the other classes. Defaults to 1, as published for ViTs; the
            release is a batch mean as well: no conversion.
        temperature (float): ``T > 0``. Defaults to 1, as published for ViTs.
        weight (Tensor, optional): ``[...]``, for a weighted mean over the rows.

    Returns:
        Tensor: Scalar; cross-entropies, so not zero where the two agree. 0 times the student's
        logits without rows.

    Raises:
        ValueError: On unequal shapes, a temperature that is not positive, fewer than two classes
            or labels that are no class indices.
    """
    check_logits(student_logits, teacher_logits, temperature)
    labels = index_labels(labels, teacher_logits, 'nkd')
    z_s, z_t = at_least_float32(student_logits), at_least_float32(teacher_logits.detach())
    target = -split_target(z_t, labels).target.exp() * split_target(z_s, labels).target
    s, t = (split_target(z, labels, temperature).others for z in (z_s, z_t))
    others = -(t.exp() * s).sum(-1)
    return weighted_mean(target + gamma * temperature**2 * others, weight)
