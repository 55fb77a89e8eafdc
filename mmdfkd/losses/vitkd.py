"""ViTKD: shallow blocks are mimicked, the deepest is generated."""

from torch import Tensor

from .mimic import masked_mimic


def vitkd_mimic(student: Tensor, teacher: Tensor, normalize: bool = False) -> Tensor:
    """Mimicry of a shallow block (ViTKD, Yang et al., 2022; papers.md 3.2, row 10).

    ``mean_bnd (F^S - F^T)^2`` of aligned patch tokens. Published: ``3e-5 sum / B`` over the first
    two blocks; as a mean over both blocks that is the weight ``3e-5 * 2 * N * D_T`` (4.5 for DeiT-S
    at 224 px). The student's side goes through a linear layer for each block first.

    Args:
        student (Tensor): Aligned patch tokens ``[B, N, D_T]``.
        teacher (Tensor): The same shape; no gradient flows into it.
        normalize (bool): In units of the teacher's energy. Defaults to False, as published.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: On unequal shapes.
    """
    return masked_mimic(student, teacher, dim=-1, normalize=normalize)


def vitkd_generation(
    generated: Tensor, teacher: Tensor, mask: Tensor, normalize: bool = False
) -> Tensor:
    """Generation of the deepest block's hidden tokens (ViTKD; papers.md 3.2, row 10).

    ``sum_bn m_bn mean_d (G - F^T)^2 / sum_bn m_bn``. Published: ``(3e-6 / r) sum / B`` at a hidden
    share ``r`` of 0.5, which is the weight ``3e-6 * N * D_T`` here (0.23 for DeiT-S at 224 px),
    whatever ``r``. What is seen does not count.

    Args:
        generated (Tensor): What a generator made of the student's seen tokens, ``[B, N, D_T]``.
        teacher (Tensor): Patch tokens ``[B, N, D_T]``; no gradient flows into it.
        mask (Tensor): ``[B, N]``, True where hidden; see
            :func:`~mmdfkd.losses.random_mask.random_mask`.
        normalize (bool): In units of the teacher's energy at hidden places. Defaults to False.

    Returns:
        Tensor: Scalar; 0 times the generated tokens where nothing is hidden.

    Raises:
        ValueError: On unequal shapes.
    """
    if mask.shape != generated.shape[:-1]:
        raise ValueError(
            f'The mask {tuple(mask.shape)} does not say which of the generated tokens '
            f'{tuple(generated.shape)} were hidden.'
        )
    return masked_mimic(generated, teacher, mask.unsqueeze(-1), dim=-1, normalize=normalize)
