"""Relations between and within classes, by correlation (DIST)."""

from torch import Tensor

from .checks import check_logits
from .reduce import at_least_float32

# For what does not vary. The release's 1e-8 is not small beside a class among a thousand.
_EPS = 1e-12


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Knowledge distillation from a stronger teacher (DIST, Huang et al., NeurIPS 2022).

    ``T^2 (a mean_b (1 - r(p^s_b, p^t_b)) + b mean_c (1 - r(p^s_:c, p^t_:c)))`` with Pearson's
    correlation ``r`` of the softened probabilities: over the classes of an image (inter) and over
    the images for a class (intra). Invariant to any positive scale and offset of the
    probabilities; the second term sees the batch (of one rank), of which it needs two images or
    more.

    Args:
        student_logits (Tensor): ``[..., C]``; leading dimensions are images.
        teacher_logits (Tensor): The same shape; no gradient flows into it.
        inter_weight (float): ``a``. Defaults to 1, as released.
        intra_weight (float): ``b``. Defaults to 1, as released; both are means there as well.
        temperature (float): ``T > 0``. Defaults to 1.

    Returns:
        Tensor: Scalar, zero where the two agree; 0 times the student's logits without rows.

    Raises:
        ValueError: On unequal shapes or a temperature that is not positive.
    """
    check_logits(student_logits, teacher_logits, temperature)
    if student_logits.numel() == 0:
        return student_logits.sum()
    p_s, p_t = (
        (at_least_float32(z) / temperature).softmax(-1).flatten(0, -2)
        for z in (student_logits, teacher_logits.detach())
    )
    inter = (1 - _correlation(p_s, p_t, 1)).mean()
    intra = (1 - _correlation(p_s, p_t, 0)).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def _correlation(x: Tensor, y: Tensor, dim: int) -> Tensor:
    x, y = (v - v.mean(dim, keepdim=True) for v in (x, y))
    return (x * y).sum(dim) / (x.norm(dim=dim) * y.norm(dim=dim) + _EPS)
