"""What the teacher's attention says, recomputed from tapped layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdfkd.heads.tokens import Grid, read_tokens
from mmdfkd.losses.attention_rows import qkv_heads
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.models.layers.attention import relative_table

from .context import SynthesisContext
from .parts import AttentionLayer, patch_size


def patch_scores(
    ctx: SynthesisContext, layer: AttentionLayer, rows: str | int
) -> tuple[Tensor, Grid]:
    """Scores of some queries with all patches, before the softmax.

    ``q K^T / sqrt(d)``, with the relative positions where the layer has them. Their softmax is the
    attention to the patches, normalised over the patches; prefix tokens are left out. Fused
    attention gives no map, so only the rows asked for are made.

    Args:
        ctx (SynthesisContext): With the layer's ``qkv`` among its taps.
        layer (AttentionLayer): Of the teacher.
        rows (str | int): ``'class'`` for the first token's row, ``'mean'`` for that of the patches'
            mean query, or a number of patches, evenly spread.

    Returns:
        tuple[Tensor, tuple[int, int]]: ``[B, heads, R, N]`` in at least float32, and the grid of
            all patches. ``N`` is their number, or that of those the teacher saw.
    """
    memory = ctx.teacher_memory
    tapped = memory.taps[layer.qkv]
    if memory.kept is None:
        tokens, grid = read_tokens(
            at_least_float32(tapped),
            tapped.shape[-1],
            memory.image_size,
            layer.prefix_tokens,
            True,
            'Prior teacher',
            layer.qkv,
        )
    else:
        tokens, patch = at_least_float32(tapped), patch_size(ctx.teacher.net)
        grid = memory.image_size[0] // patch[0], memory.image_size[1] // patch[1]
    query, key, _ = qkv_heads(tokens, layer.num_heads)
    query, key, first = (
        query[:, :, layer.prefix_tokens :],
        key[:, :, layer.prefix_tokens :],
        query[:, :, :1],
    )
    if rows == 'class':
        chosen, own = None, first
    elif rows == 'mean':
        chosen, own = None, query.mean(2, keepdim=True)
    else:
        chosen = evenly(query.shape[2], rows).to(query.device)
        own = query[:, :, chosen]
    with torch.autocast(own.device.type, enabled=False):
        scores = own @ key.transpose(-2, -1) * key.shape[-1] ** -0.5
        if getattr(layer.module, 'rel_pos_h', None) is not None:
            scores = scores + _relative(query, layer, grid, chosen)
    return scores, grid


def evenly(count: int, wanted: int) -> Tensor:
    """``min(count, wanted)`` indices below ``count``, evenly spread."""
    wanted = min(count, wanted)
    return (torch.arange(wanted) * count + count // 2) // wanted


def _relative(query: Tensor, layer: AttentionLayer, grid: Grid, chosen: Tensor | None) -> Tensor:
    """Relative positions' part of the scores ``[B, h, R, N]``; of the mean query without choice."""
    height, width = grid
    table_h = relative_table(layer.module.rel_pos_h, height).to(query)
    table_w = relative_table(layer.module.rel_pos_w, width).to(query)
    if chosen is None:
        places = query.unflatten(2, grid)
        rows = torch.einsum('bnhwc,hkc->bnk', places, table_h)[:, :, None] / (height * width)
        columns = torch.einsum('bnhwc,wkc->bnk', places, table_w)[:, :, None] / (height * width)
    else:
        own = query[:, :, chosen]
        rows = torch.einsum('bnrc,rkc->bnrk', own, table_h[chosen // width])
        columns = torch.einsum('bnrc,rkc->bnrk', own, table_w[chosen % width])
    return (rows[..., :, None] + columns[..., None, :]).flatten(-2)


def mean_head_output(ctx: SynthesisContext, layer: AttentionLayer) -> Tensor:
    """Of each patch, the mean over heads of what they give it: ``[B, N, d]``."""
    tapped = at_least_float32(ctx.teacher_memory.taps[layer.heads_out])
    tokens = tapped.flatten(1, 2) if tapped.dim() == 4 else tapped
    return tokens[:, layer.prefix_tokens :].unflatten(-1, (layer.num_heads, -1)).mean(2)


def chosen_layers(layers: Sequence[AttentionLayer], from_depth: float) -> list[AttentionLayer]:
    """Those at or behind a depth; the last one if there are none."""
    return [layer for layer in layers if layer.depth >= from_depth] or list(layers[-1:])
