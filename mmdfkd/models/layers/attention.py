"""Attention of ViTDet: windows and decomposed relative positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut a token map into windows, padding with zeros at the right and the bottom.

    Args:
        x (Tensor): Tokens ``[B, H, W, C]``.
        window_size (int): Side of a window in tokens.

    Returns:
        tuple: Windows ``[B * n, window_size, window_size, C]`` and the padded ``(H, W)``.
    """
    b, h, w, c = x.shape
    pad_h, pad_w = -h % window_size, -w % window_size
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    ph, pw = h + pad_h, w + pad_w
    x = x.reshape(b, ph // window_size, window_size, pw // window_size, window_size, c)
    return x.transpose(2, 3).reshape(-1, window_size, window_size, c), (ph, pw)


def window_unpartition(
    windows: Tensor, window_size: int, padded: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Undo :func:`window_partition`: ``[B * n, s, s, C]`` to ``[B, H, W, C]`` of ``size``."""
    (ph, pw), (h, w) = padded, size
    rows, cols = ph // window_size, pw // window_size
    x = windows.reshape(-1, rows, cols, window_size, window_size, windows.shape[-1])
    x = x.transpose(2, 3).reshape(-1, ph, pw, windows.shape[-1])
    return x[:, :h, :w].contiguous()


def relative_table(table: Tensor, size: int) -> Tensor:
    """Look up ``table`` for every (query, key) pair of one axis: ``[size, size, head_dims]``."""
    length = 2 * size - 1
    if table.shape[0] != length:
        table = F.interpolate(table.t()[None], size=length, mode='linear')[0].t()
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position[None, :] + size - 1]


def decomposed_rel_pos(
    q: Tensor, table_h: Tensor, table_w: Tensor, size: tuple[int, int]
) -> Tensor:
    """Additive attention bias from decomposed relative positions.

    ``bias[(i, j), (k, l)] = q_ij . Rh[i - k] + q_ij . Rw[j - l]`` with the unscaled query (MViTv2,
    Li et al., CVPR 2022, eq. 4; ViTDet, Li et al., ECCV 2022, appendix). Tables of another length
    are interpolated.

    Args:
        q (Tensor): Queries ``[B, heads, H * W, head_dims]``.
        table_h (Tensor): ``[2 * Hp - 1, head_dims]``.
        table_w (Tensor): ``[2 * Wp - 1, head_dims]``.
        size (tuple[int]): ``(H, W)`` in tokens.

    Returns:
        Tensor: ``[B, heads, H * W, H * W]``.
    """
    h, w = size
    b, heads, n, dims = q.shape
    grid = q.reshape(b, heads, h, w, dims)
    bias_h = torch.einsum('bnhwc,hkc->bnhwk', grid, relative_table(table_h, h).to(q))
    bias_w = torch.einsum('bnhwc,wkc->bnhwk', grid, relative_table(table_w, w).to(q))
    return (bias_h[..., :, None] + bias_w[..., None, :]).reshape(b, heads, n, n)


class WindowAttention(nn.Module):
    """Multi-head self-attention over a window or over the whole map.

    Uses the fused kernel; a relative position enters it as an additive mask.

    Args:
        embed_dims (int): Channels ``C`` of the tokens.
        num_heads (int): Number of heads.
        head_dims (int, optional): Channels of a head. Defaults to ``embed_dims // num_heads``; a
            student that keeps whole heads of its teacher in a narrower stream sets it.
        rel_pos_size (int, optional): Side, in tokens, of the relative-position tables; None for no
            relative positions.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        head_dims: int | None = None,
        rel_pos_size: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dims = head_dims or embed_dims // num_heads
        inner = num_heads * self.head_dims
        self.qkv = nn.Linear(embed_dims, 3 * inner)
        self.proj = nn.Linear(inner, embed_dims)
        if rel_pos_size is None:
            self.rel_pos_h = self.rel_pos_w = None
        else:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, self.head_dims))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, self.head_dims))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each map of ``[B, H, W, C]``; same shape out."""
        b, h, w, _ = x.shape
        qkv = self.qkv(x).view(b, h * w, 3, self.num_heads, self.head_dims)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = None
        if self.rel_pos_h is not None:
            bias = decomposed_rel_pos(q, self.rel_pos_h, self.rel_pos_w, (h, w))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(b, h, w, -1))
