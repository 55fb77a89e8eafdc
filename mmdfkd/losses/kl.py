"""Divergences between class distributions, and between objectness maps."""

import torch.nn.functional as F
from torch import Tensor

from .checks import check_logits
from .reduce import at_least_float32, weighted_mean


def kl_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = 'batchmean',
) -> Tensor:
    """Softened KL divergence of class distributions (Hinton et al., 2015, arXiv 1503.02531).

    ``T^2 * mean_b sum_c p^t_bc (log p^t_bc - log p^s_bc)`` with ``p = softmax(z / T)``. The factor
    ``T^2`` keeps the gradient's size when the temperature changes.

    Args:
        student_logits (Tensor): ``[..., C]``.
        teacher_logits (Tensor): ``[..., C]``; no gradient flows into it.
        temperature (float): ``T > 0``. Defaults to 1.
        weight (Tensor, optional): ``[...]``, for a weighted mean over the rows.
        reduction (str): ``'batchmean'`` is the mean over all rows. ``'numel'`` divides that by
            ``C``, as DeiT's released code does: it **shrinks with the number of classes** and is
            here for parity only. ``'none'`` gives one value a row, ``[...]``.

    Returns:
        Tensor: Scalar, zero where the two agree; 0 times the student's logits without rows.

    Raises:
        ValueError: On unequal shapes, a temperature that is not positive or an unknown reduction.
    """
    check_logits(student_logits, teacher_logits, temperature)
    if reduction not in ('batchmean', 'numel', 'none'):
        raise ValueError(f"reduction must be 'batchmean', 'numel' or 'none', not {reduction!r}.")
    log_s = (at_least_float32(student_logits) / temperature).log_softmax(-1)
    log_t = (at_least_float32(teacher_logits.detach()) / temperature).log_softmax(-1)
    rows = temperature**2 * F.kl_div(log_s, log_t, reduction='none', log_target=True).sum(-1)
    if reduction == 'none':
        return rows
    loss = weighted_mean(rows, weight)
    return loss / student_logits.shape[-1] if reduction == 'numel' else loss


def bce_with_soft_targets(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy with the teacher's probabilities as targets.

    ``T^2 * mean(-q log p - (1 - q) log(1 - p))`` with ``p = sigmoid(z^s / T)``, ``q = sigmoid(z^t /
    T)``: the objectness loss of G2SD (Huang et al., CVPR 2023). Its minimum is the teacher's
    entropy, not zero.

    Args:
        student_logits (Tensor): Any shape.
        teacher_logits (Tensor): The same shape; no gradient flows into it.
        temperature (float): ``T > 0``. Defaults to 1.
        weight (Tensor, optional): Weights of the mean, broadcast to the logits.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: On unequal shapes or a temperature that is not positive.
    """
    check_logits(student_logits, teacher_logits, temperature)
    z_s = at_least_float32(student_logits) / temperature
    q = (at_least_float32(teacher_logits.detach()) / temperature).sigmoid().to(z_s)
    bce = F.binary_cross_entropy_with_logits(z_s, q, reduction='none')
    return temperature**2 * weighted_mean(bce, weight)


def binary_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Soft binary cross-entropy less the teacher's entropy: same gradient, zero at agreement.

    ``T^2 * mean(q (log q - log p) + (1 - q) (log(1 - q) - log(1 - p)))``; see
    :func:`bce_with_soft_targets`.

    Args:
        student_logits (Tensor): Any shape.
        teacher_logits (Tensor): The same shape; no gradient flows into it.
        temperature (float): ``T > 0``. Defaults to 1.
        weight (Tensor, optional): Weights of the mean, broadcast to the logits.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: On unequal shapes or a temperature that is not positive.
    """
    check_logits(student_logits, teacher_logits, temperature)
    z_s = at_least_float32(student_logits) / temperature
    z_t = at_least_float32(teacher_logits.detach()) / temperature
    on = z_t.sigmoid() * (F.logsigmoid(z_t) - F.logsigmoid(z_s))
    off = (-z_t).sigmoid() * (F.logsigmoid(-z_t) - F.logsigmoid(-z_s))
    return temperature**2 * weighted_mean(on + off, weight)
