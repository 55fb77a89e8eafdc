"""Attention Probe: which patches the class token resembles."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .mimic import masked_mimic
from .reduce import at_least_float32

NORM_AXES = ('channel', 'token')


def class_gram_row(tokens: Tensor, prefix_tokens: int = 1, norm_axis: str = 'channel') -> Tensor:
    """The class token's row of the Gram matrix, ``p = G[0, patches]``, ``G = F^ F^T``.

    Args:
        tokens (Tensor): Output of a block, ``[B, L, D]``, the class token first.
        prefix_tokens (int): Tokens before the patches. With 0 the mean of the normalised patches
            stands for the class token (ours). Defaults to 1.
        norm_axis (str): ``'channel'``: unit tokens, ``p`` are cosines. ``'token'``: each channel
            has unit norm over all ``L`` tokens, as in the authors' release; ``p`` then grows with
            ``D``. Defaults to ``'channel'``.

    Returns:
        Tensor: ``[B, N]``, ``N = L - prefix_tokens``.

    Raises:
        ValueError: On an unknown axis, or where no patches are left.
    """
    if norm_axis not in NORM_AXES:
        raise ValueError(f'norm_axis must be one of {NORM_AXES}, not {norm_axis!r}.')
    if tokens.dim() != 3 or not 0 <= prefix_tokens < tokens.shape[1]:
        raise ValueError(
            f'A Gram row needs tokens [B, L, D] with more than {prefix_tokens} prefix tokens, not '
            f'{tuple(tokens.shape)}.'
        )
    unit = F.normalize(at_least_float32(tokens), dim=2 if norm_axis == 'channel' else 1, eps=1e-6)
    patches = unit[:, prefix_tokens:]
    anchor = unit[:, 0] if prefix_tokens else patches.mean(1)
    with torch.autocast(tokens.device.type, enabled=False):
        return (patches @ anchor.unsqueeze(-1)).squeeze(-1)


def attention_probe(
    student: Tensor,
    teacher: Tensor,
    prefix_tokens: int | Sequence[int] = 1,
    norm_axis: str = 'channel',
) -> Tensor:
    """Squared distance of both Gram rows (Wang et al., ICASSP 2022; papers.md 4.3).

    ``mean_bj (p^T_bj - p^S_bj)^2``; the published ``sum / (3 B N)`` is the mean of this over its
    three layers, so the published weight 0.8 holds as it is. With ``norm_axis='channel'`` it is
    also ``L_patch`` of the first paper (papers.md 1.3, our reading), and reading (b) of its
    ``L_attention`` where the images carry the gradient. No projector: the widths may differ.

    The channel axis makes it blind to a positive scale of each token, to an orthogonal map of the
    channels and to channels of zeros; the token axis to a positive scale of each channel.

    Args:
        student (Tensor): ``[B, P_S + N, D_S]``.
        teacher (Tensor): ``[B, P_T + N, D_T]``; no gradient flows into it.
        prefix_tokens (int | Sequence[int]): Both numbers of prefix tokens, or the student's and the
            teacher's. Defaults to 1.
        norm_axis (str): See :func:`class_gram_row`. Defaults to ``'channel'``.

    Returns:
        Tensor: Scalar, in [0, 4] with the channel axis.

    Raises:
        ValueError: On an unknown axis, or unequal numbers of patches.
    """
    both = (prefix_tokens,) * 2 if isinstance(prefix_tokens, int) else tuple(prefix_tokens)
    own = class_gram_row(student, both[0], norm_axis)
    other = class_gram_row(teacher.detach(), both[1], norm_axis)
    if own.shape != other.shape:
        raise ValueError(
            f'The probe compares equal numbers of patches, not {tuple(own.shape)} with '
            f'{tuple(other.shape)}: resize the grid of one, or set prefix_tokens=(student, teacher)'
        )
    return masked_mimic(own, other, normalize=False)
