"""Rows of the softmax attention, recomputed from queries and keys."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .reduce import at_least_float32


def qkv_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values out of the fused output of a ``qkv`` layer.

    Fused attention returns no map. The output of its ``qkv`` layer can be tapped instead, and
    :func:`attention_rows` makes the rows that are wanted, in ``O(h R L d)``.

    Args:
        qkv (Tensor): ``[B, L, 3 * h * d]``, or ``[B, H, W, 3 * h * d]`` (ViTDet: ``B`` counts
            windows), in the order of mmpretrain, timm and ViTDet: all queries, all keys, all
            values, each head by head.
        num_heads (int): ``h``.

    Returns:
        tuple[Tensor, Tensor, Tensor]: ``[B, h, L, d]`` each, ``L = H * W`` for maps.

    Raises:
        ValueError: If the shape does not fit the number of heads.
    """
    if qkv.dim() == 4:
        qkv = qkv.flatten(1, 2)
    if qkv.dim() != 3 or num_heads < 1 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(
            f'The output of a qkv layer is [B, L, 3 * heads * d], not {tuple(qkv.shape)} with '
            f'{num_heads} heads: tap the module named qkv and give its number of heads.'
        )
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key, value


def attention_rows(
    query: Tensor,
    key: Tensor,
    rows: str | Sequence[int] = 'class',
    prefix_tokens: int = 1,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """``softmax(q_r K^T / sqrt(d))`` for the wanted rows ``r`` only.

    Args:
        query (Tensor): ``[B, h, L, d]``.
        key (Tensor): ``[B, h, L, d]``.
        rows (str | Sequence[int]): ``'class'`` the first token's row; ``'mean'`` one row of the
            mean query over the patches, for networks without a class token (as SARDFQ does for
            Swin); ``'all'``; or the indices of tokens. Defaults to ``'class'``.
        prefix_tokens (int): Tokens before the patches, left out of the mean query; ``'class'``
            needs one. Defaults to 1.
        scale (float, optional): In place of ``1 / sqrt(d)``.
        bias (Tensor, optional): Added to the logits, broadcast to ``[B, h, R, L]``: relative
            positions, masks.

    Returns:
        Tensor: ``[B, h, R, L]``, every row sums to 1; differentiable in both. Halves are computed
        in float32.

    Raises:
        ValueError: On unknown rows, unequal shapes, or a class row without prefix tokens.
    """
    if query.dim() != 4 or query.shape != key.shape:
        raise ValueError(
            'Queries and keys of self-attention are [B, heads, L, d] both, not '
            f'{tuple(query.shape)} and {tuple(key.shape)}.'
        )
    query, key = at_least_float32(query), at_least_float32(key)
    if isinstance(rows, str):
        if rows not in ('class', 'mean', 'all'):
            raise ValueError(f"rows must be 'class', 'mean', 'all' or indices, not {rows!r}.")
        if rows == 'class' and prefix_tokens < 1:
            raise ValueError("There is no class token without prefix tokens: use rows='mean'.")
        if rows == 'class':
            query = query[:, :, :1]
        elif rows == 'mean':
            query = query[:, :, prefix_tokens:].mean(2, keepdim=True)
    else:
        query = query[:, :, list(rows)]
    scale = key.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ key.transpose(-2, -1) * scale
        return (logits if bias is None else logits + bias.to(logits)).softmax(-1)
