"""Relations between hidden states (MiniViT)."""

from torch import Tensor

from .manifold import intra_image


def hidden_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine relations of the tokens of a window (MiniViT, Zhang et al., CVPR 2022).

    ``mean (H^ H^^T_s - H^ H^^T_t)^2`` with rows of length 1 (papers.md Part 3.2, method 9): what
    the manifold loss calls intra-image. The release multiplies the mean by the 49 tokens of a Swin
    window and weighs it 0.1: a weight of 4.9 of ours. Without the 49 it does not depend on the
    window.

    Args:
        student (Tensor): ``[B, N, D_s]``; windows count as images.
        teacher (Tensor): ``[B, N, D_t]``; no gradient flows into it.

    Returns:
        Tensor: Scalar in [0, 4].

    Raises:
        ValueError: If images or tokens differ in number.
    """
    return intra_image(student, teacher)
