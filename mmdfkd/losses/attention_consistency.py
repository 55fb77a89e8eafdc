"""Where both networks look, averaged over heads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .mimic import masked_mimic
from .reduce import at_least_float32, weighted_mean

DISTANCES = ('mse', 'kl')


def patch_attention(rows: Tensor, prefix_tokens: int = 1) -> Tensor:
    """Attention to the patches, ``mean_h a[P:]``, in units of uniform attention.

    Args:
        rows (Tensor): ``[B, h, R, L]``, see
            :func:`~mmdfkd.losses.attention_rows.attention_rows`.
        prefix_tokens (int): ``P``, left out. Defaults to 1.

    Returns:
        Tensor: ``[B, R, N]``, ``N`` times the attention: about 1 whatever the resolution.

    Raises:
        ValueError: Where no patches are left.
    """
    if rows.dim() != 4 or not 0 <= prefix_tokens < rows.shape[-1]:
        raise ValueError(
            f'Attention rows are [B, heads, R, L] with more than {prefix_tokens} tokens in a row, '
            f'not {tuple(rows.shape)}.'
        )
    patches = at_least_float32(rows)[..., prefix_tokens:].mean(1)
    return patches * patches.shape[-1]


def attention_consistency(
    student: Tensor,
    teacher: Tensor,
    prefix_tokens: int | Sequence[int] = 1,
    distance: str = 'mse',
) -> Tensor:
    """Both networks attend to the same patches (papers.md 1.3, variant on true attention; ours).

    With ``p = mean_h softmax(q K^T / sqrt(d))`` over the ``N`` patches:

    * ``'mse'``: ``mean_brj (N p^T - N p^S)^2``. A plain mean of squares of ``p`` falls with
      ``1 / N^2``; its weight is this one's times ``N^2``.
    * ``'kl'``: ``mean_br sum_j p^T (log p^T - log p^S)``, ``p`` normalised over the patches.

    Numbers of heads and widths may differ; the order of heads does not matter.

    Args:
        student (Tensor): Attention rows ``[B, h_S, R, P_S + N]``.
        teacher (Tensor): ``[B, h_T, R, P_T + N]``; no gradient flows into it.
        prefix_tokens (int | Sequence[int]): Both numbers of prefix tokens, or the student's and the
            teacher's. Defaults to 1.
        distance (str): ``'mse'`` or ``'kl'``. Defaults to ``'mse'``.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: On an unknown distance, or unequal numbers of rows or patches.
    """
    if distance not in DISTANCES:
        raise ValueError(f'distance must be one of {DISTANCES}, not {distance!r}.')
    both = (prefix_tokens,) * 2 if isinstance(prefix_tokens, int) else tuple(prefix_tokens)
    own = patch_attention(student, both[0])
    other = patch_attention(teacher.detach(), both[1])
    if own.shape != other.shape:
        raise ValueError(
            f'Attention to equal numbers of patches can be compared, not {tuple(own.shape)} with '
            f'{tuple(other.shape)} [B, R, N]: resize the rows, or set prefix_tokens=(student, '
            'teacher).'
        )
    if distance == 'mse':
        return masked_mimic(own, other, dim=-1, normalize=False)
    # Far below any attention that matters, far above the smallest float32.
    floor = 1e-12
    log_s, log_t = ((p / p.sum(-1, keepdim=True).clamp_min(floor)) for p in (own, other))
    log_s, log_t = log_s.clamp_min(floor).log(), log_t.clamp_min(floor).log()
    return weighted_mean((log_t.exp() * (log_t - log_s)).sum(-1))


def attention_uniformity(rows: Tensor, prefix_tokens: int = 1) -> Tensor:
    """Cosine between the attention to the patches and uniform attention (papers.md 4.2).

    ``cos(a, u) = sum_j a_j / (sqrt(N) |a|)``, 1 where a query sees all patches alike,
    ``1 / sqrt(N)`` where it sees one. Attention Probe keeps images where it is small; minimised by
    a generator it is reading (a) of the first paper's ``L_attention`` (papers.md 1.3, ours). The
    gradient flows through the rows, to the images. The authors' release reads blocks 3 and 7
    (of 12, from 0), head 0 only, summed with weight 0.05.

    Args:
        rows (Tensor): ``[..., L]``.
        prefix_tokens (int): Left out in front. Defaults to 1.

    Returns:
        Tensor: ``[...]``, in ``[1 / sqrt(N), 1]``; blind to the share of the prefix tokens.

    Raises:
        ValueError: Where no patches are left.
    """
    if rows.dim() < 1 or not 0 <= prefix_tokens < rows.shape[-1]:
        raise ValueError(
            f'Attention rows need more than {prefix_tokens} prefix tokens, not {tuple(rows.shape)}.'
        )
    patches = at_least_float32(rows)[..., prefix_tokens:]
    norm = torch.linalg.vector_norm(patches, dim=-1).clamp_min(1e-12)
    return patches.sum(-1) / (norm * patches.shape[-1] ** 0.5)
