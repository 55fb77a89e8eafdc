"""Logits in units of their own spread, for any loss of logits."""

from collections.abc import Callable

from torch import Tensor

from .checks import check_logits
from .reduce import at_least_float32


def standardize_logits(logits: Tensor, unbiased: bool = False, eps: float = 1e-7) -> Tensor:
    """Z-score over the classes: ``(z - mean_c z) / std_c z`` (Sun et al., CVPR 2024, alg. 1).

    Args:
        logits (Tensor): ``[..., C]``.
        unbiased (bool): Divide the variance by ``C - 1``, as the release does, instead of ``C``:
            a factor of ``sqrt(1 - 1 / C)`` of the logits. Defaults to False.
        eps (float): Keeps equal logits finite. Defaults to 1e-7, as released.

    Returns:
        Tensor: ``[..., C]``, mean 0 and variance 1; in float32 where the logits were halves.
    """
    z = at_least_float32(logits)
    z = z - z.mean(-1, keepdim=True)
    variance = z.square().sum(-1, keepdim=True) / (z.shape[-1] - int(unbiased))
    # Inside the root, so that the gradient of equal logits is finite.
    return z / (variance + eps**2).sqrt()


def with_standardized_logits(
    loss: Callable[..., Tensor],
    student_logits: Tensor,
    teacher_logits: Tensor,
    *args,
    unbiased: bool = False,
    **kwargs,
) -> Tensor:
    """Any loss of logits, on standardised logits of both networks (Sun et al., CVPR 2024).

    The student has to match the teacher's order and spacing of classes, but neither its scale nor
    its offset. Published for the divergence: base temperature 2 and weight 9 (the ``T^2`` of
    :func:`~mmdfkd.losses.kl_divergence` included there as here). Terms with true labels are meant
    to see the plain logits.

    Args:
        loss (Callable): ``loss(student_logits, teacher_logits, *args, **kwargs)``.
        student_logits (Tensor): ``[..., C]``.
        teacher_logits (Tensor): The same shape; no gradient flows into it.
        *args: Passed on.
        unbiased (bool): See :func:`standardize_logits`. Defaults to False.
        **kwargs: Passed on.

    Returns:
        Tensor: What ``loss`` returns.

    Raises:
        ValueError: On unequal shapes.
    """
    check_logits(student_logits, teacher_logits)
    return loss(
        standardize_logits(student_logits, unbiased),
        standardize_logits(teacher_logits.detach(), unbiased),
        *args,
        **kwargs,
    )
