"""Regression of normalised features."""

from torch import Tensor

from .mimic import cosine_distance


def simreg(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of unit vectors (SimReg, Navaneet et al., BMVC 2021).

    ``mean (2 - 2 cos(h(f^S), f^T)) = mean |h / |h| - f / |f||^2``, papers.md 3.2, row 11. The
    published weight is 1, ``h`` an MLP of four layers that is dropped after training.

    Args:
        student (Tensor): ``h(f^S)``, ``[..., D]``.
        teacher (Tensor): The same shape; no gradient flows into it.

    Returns:
        Tensor: Scalar in [0, 4]; blind to the length of either vector.

    Raises:
        ValueError: On unequal shapes.
    """
    return 2 * cosine_distance(student, teacher, dim=-1)
