"""Feature recalibration of a student that merges its tokens (SiT)."""

from collections.abc import Sequence

from torch import Tensor

from .mimic import masked_mimic


def feature_recalibration(
    recovered: Sequence[Tensor], teacher: Sequence[Tensor], normalize: bool = False
) -> Tensor:
    """Tokens of the unslimmed network, layer by layer (SiT, Zong et al., ECCV 2022).

    ``mean_l mean_bnd (R_l(F^S_l) - F^T_l)^2``, ``R_l`` what gives the merged patches of layer ``l``
    their number back (papers.md 3.2, row 12). Published with the weight 2.

    Args:
        recovered (Sequence[Tensor]): ``R_l(F^S_l)`` of each layer, ``[B, N, D]``.
        teacher (Sequence[Tensor]): The same layers of the unslimmed network, of the same shapes; no
            gradient flows into them.
        normalize (bool): Each layer in units of the teacher's energy there. Defaults to False, as
            published.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: Without layers, with unequal numbers of them, or on unequal shapes.
    """
    if not recovered or len(recovered) != len(teacher):
        raise ValueError(
            f'feature_recalibration compares layers pair by pair, not {len(recovered)} of the '
            f'student with {len(teacher)} of the teacher.'
        )
    total = sum(
        masked_mimic(own, other, dim=-1, normalize=normalize)
        for own, other in zip(recovered, teacher, strict=True)
    )
    return total / len(recovered)
