"""Masked generative distillation."""

from torch import Tensor

from .mimic import masked_mimic


def mgd(generated: Tensor, teacher: Tensor, normalize: bool = False) -> Tensor:
    """Teacher's map from a part of the student's (MGD, Yang et al., ECCV 2022).

    ``mean_nchw (G(m F^S) - F^T)^2``: unlike ViTKD, every place counts, hidden or not. Published:
    ``2e-5 sum / N`` at a hidden share of 0.65 (0.75 for segmentation), which is the weight
    ``2e-5 * C * H * W`` here, other at every level and resolution.

    Args:
        generated (Tensor): What a generator made of the student's masked, aligned map,
            ``[N, C, H, W]``.
        teacher (Tensor): The same shape; no gradient flows into it.
        normalize (bool): In units of the teacher's energy. Defaults to False, as published.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: On unequal shapes.
    """
    return masked_mimic(generated, teacher, dim=1, normalize=normalize)
