from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdfkd.registry import MODELS

from ..layers import WindowAttention
from .base import Generator, map_norm


def grid_positions(size: tuple[int, int], dims: int, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, ``[H, W, dims]``, at any size.

    The frequencies are those of half a turn over the whole grid and its doublings: a place in the
    image has the same position at any size.

    Args:
        size (tuple[int, int]): ``(H, W)`` in tokens.
        dims (int): A multiple of 4.
        like (Tensor): Of the device and type wanted.
    """
    turns = torch.pi * 2.0 ** torch.arange(dims // 4, device=like.device).clamp(max=6)
    axes = []
    for count in size:
        place = (torch.arange(count, device=like.device) + 0.5) / count
        angle = place[:, None] * turns
        axes.append(torch.cat([angle.sin(), angle.cos()], 1))
    rows = axes[0][:, None].expand(*size, -1)
    columns = axes[1][None].expand(*size, -1)
    return torch.cat([rows, columns], -1).to(like)


class SelfAttentionBlock(nn.Module):
    """A pre-norm transformer block over a map ``[B, H, W, C]``, with fused attention.

    Args:
        dims (int): Channels ``C``, a multiple of the heads and of 4.
        heads (int): Attention heads.
    """

    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims)
        self.attn = WindowAttention(dims, heads)
        self.norm2 = nn.LayerNorm(dims)
        self.mlp = nn.Sequential(nn.Linear(dims, 4 * dims), nn.GELU(), nn.Linear(4 * dims, dims))

    def forward(self, x: Tensor) -> Tensor:
        """Every token sees every other."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@MODELS.register_module()
class TransformerGenerator(Generator):
    """A convolutional generator with transformer blocks at its coarse stages.

    The "transformer-augmented" generator of *Optimizing Vision Transformers with Data-Free
    Knowledge Transfer* (Habib et al., arXiv 2408.05952). What is accessible of the paper says that
    the generator is augmented by transformer blocks, and that its objective is
    ``L_adv + lambda * L_attention``; it gives neither layers nor widths nor numbers. **Our
    reading**: the shape of TransGAN (Jiang et al., NeurIPS 2021: blocks of self-attention at 8, 16
    and 32 px, fewer and narrower the finer the grid) on DAFL's convolutional frame, so that the
    blocks lay out the image where tokens are few and convolutions draw it; sine positions, so that
    any size and shape works; three blocks of width 128 and 96. For TransGAN's own sizes set
    ``channels=(1024, 256, 64)`` and ``depths=(5, 4, 2)``.

    Args:
        noise_dims (int): Numbers of noise an image; with ``noisy_layers`` the width behind them.
        channels (Sequence[int]): Of the first grid and after each enlargement.
        depths (Sequence[int]): Transformer blocks at each of these grids.
        num_heads (int): Of every block.
        base (int | Sequence[int]): Height and width of the first grid.
        label_dims (int): Numbers of a label's code; 0 for a generator that knows no labels.
        noisy_layers (int): NAYER's; see :class:`~mmdfkd.models.generators.base.Generator`.
        norm (str): Of the convolutions: ``'batch'`` or ``'group'``.
        init_cfg (dict, optional): mmengine's initialisation.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        noise_dims: int = 256,
        channels: Sequence[int] = (128, 96, 64),
        depths: Sequence[int] = (2, 1, 0),
        num_heads: int = 4,
        base: int | Sequence[int] = 8,
        label_dims: int = 0,
        noisy_layers: int = 0,
        norm: str = 'batch',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(noise_dims, base, label_dims, noisy_layers, init_cfg)
        if len(channels) < 2 or len(depths) != len(channels):
            raise ValueError(
                'TransformerGenerator: channels and depths have one number for the first grid and '
                f'one for each enlargement, got {tuple(channels)} and {tuple(depths)}.'
            )
        for dims, depth in zip(channels, depths, strict=True):
            if depth and (dims % num_heads or dims % 4):
                raise ValueError(
                    f'TransformerGenerator: {dims} channels cannot be cut into {num_heads} heads '
                    'with positions; take a multiple of 4 and of the heads.'
                )
        self.channels = tuple(channels)
        self.stem = nn.Linear(self.latent.dims, channels[0] * self.base[0] * self.base[1])
        self.blocks = nn.ModuleList(
            nn.ModuleList(SelfAttentionBlock(dims, num_heads) for _ in range(depth))
            for dims, depth in zip(channels, depths, strict=True)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                map_norm(norm, after),
                nn.LeakyReLU(0.2),
            )
            for before, after in zip(channels[:-1], channels[1:], strict=True)
        )
        self.to_rgb = nn.Sequential(
            nn.Conv2d(channels[-1], 3, 3, padding=1, bias=False), map_norm(norm, 3), nn.Sigmoid()
        )

    def render(self, latent: Tensor, size: tuple[int, int]) -> Tensor:
        """From ``[B, D]`` to images ``[B, 3, H, W]`` in [0, 1]."""
        x = self.stem(latent).view(len(latent), self.channels[0], *self.base)
        x = self._attend(x, self.blocks[0])
        grids = self.sizes(size, len(self.stages))
        for stage, blocks, grid in zip(self.stages, self.blocks[1:], grids, strict=True):
            x = self._attend(stage(F.interpolate(x, grid)), blocks)
        return self.to_rgb(x)

    @staticmethod
    def _attend(x: Tensor, blocks: nn.ModuleList) -> Tensor:
        """Transformer blocks over ``[B, C, H, W]``."""
        if not len(blocks):
            return x
        tokens = x.permute(0, 2, 3, 1)
        tokens = tokens + grid_positions(tuple(x.shape[-2:]), x.shape[1], x)
        for block in blocks:
            tokens = block(tokens)
        return tokens.permute(0, 3, 1, 2).contiguous()
