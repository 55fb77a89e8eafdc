"""Target-aware transformer: each place of the teacher from all places of the student."""

import torch
from torch import Tensor

from .mimic import masked_mimic
from .reduce import at_least_float32

ORIENTATIONS = ('paper', 'release')


def target_aware_features(
    query: Tensor,
    value: Tensor,
    teacher: Tensor,
    orientation: str = 'paper',
    scale: float = 1.0,
) -> Tensor:
    """Student features, reconfigured for the teacher's places (papers.md 3.2, row 2).

    * ``'paper'``: ``out_i = sum_j softmax_j(s <F^T_i, q_j>) v_j``: each place ``i`` of the teacher
      asks all places ``j`` of the student. The grids may differ.
    * ``'release'``: ``out_i = sum_j softmax_j(s <q_i, F^T_j>) v_j``: each place of the student
      asks the teacher's. The grids have to be equal.

    Args:
        query (Tensor): ``gamma(F^S)``, ``[B, N_S, D_T]``.
        value (Tensor): ``phi(F^S)``, ``[B, N_S, D_T]``.
        teacher (Tensor): ``[B, N_T, D_T]``; no gradient flows into it.
        orientation (str): See above. Defaults to ``'paper'``.
        scale (float): ``s``; 1 in paper and release, which saturates on wide features;
            ``D_T ** -0.5`` is the transformer's. Defaults to 1.

    Returns:
        Tensor: ``[B, N_T, D_T]``.

    Raises:
        ValueError: On an unknown orientation or shapes that do not fit.
    """
    if orientation not in ORIENTATIONS:
        raise ValueError(f'orientation must be one of {ORIENTATIONS}, not {orientation!r}.')
    fits = teacher.dim() == 3 and teacher.shape[::2] == query.shape[::2]
    if query.dim() != 3 or query.shape != value.shape or not fits:
        raise ValueError(
            'Queries and values are [B, N_S, D_T] and the teacher [B, N_T, D_T], not '
            f'{tuple(query.shape)}, {tuple(value.shape)} and {tuple(teacher.shape)}.'
        )
    if orientation == 'release' and query.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"orientation='release' needs equal grids, not {query.shape[1]} and {teacher.shape[1]} "
            "places: use 'paper', or resize the student's."
        )
    q, v = at_least_float32(query), at_least_float32(value)
    key = at_least_float32(teacher.detach()).to(q)
    with torch.autocast(q.device.type, enabled=False):
        logits = key @ q.transpose(1, 2) if orientation == 'paper' else q @ key.transpose(1, 2)
        return (scale * logits).softmax(-1) @ v


def target_aware(
    query: Tensor,
    value: Tensor,
    teacher: Tensor,
    orientation: str = 'paper',
    scale: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """Mean squared error of the reconfigured features (TaT, Lin et al., CVPR 2022).

    ``mean_bnd (out - F^T)^2``. The published weight 0.2 (stable from 0.05 to 0.25; relative to 0.1
    of the cross-entropy) belongs to this mean. In the paper's orientation the order of the
    student's places does not matter.

    Args:
        query (Tensor): See :func:`target_aware_features`.
        value (Tensor): Likewise.
        teacher (Tensor): Likewise; no gradient flows into it.
        orientation (str): Likewise.
        scale (float): Likewise.
        normalize (bool): In units of the teacher's energy. Defaults to False, as published.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: On an unknown orientation or shapes that do not fit.
    """
    out = target_aware_features(query, value, teacher, orientation, scale)
    return masked_mimic(out, teacher, dim=-1, normalize=normalize)
