"""The plain backbone of ViTDet."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdfkd.registry import MODELS
from mmdfkd.utils.checkpoint import unwrap_state_dict

from ..layers import WindowAttention, window_partition, window_unpartition
from .vit_keys import RELATIVE_POSITION, to_vitdet_keys


class ViTArch(NamedTuple):
    """Sizes of a plain ViT.

    Attributes:
        embed_dims: Channels of the tokens.
        num_layers: Number of blocks.
        num_heads: Heads of each block.
        feedforward_channels: Hidden units of each MLP.
        global_indices: Blocks that attend over the whole map; the others stay in windows.
    """

    embed_dims: int
    num_layers: int
    num_heads: int
    feedforward_channels: int
    global_indices: tuple[int, ...]


ARCHS = {
    'tiny': ViTArch(192, 12, 3, 768, (2, 5, 8, 11)),
    'small': ViTArch(384, 12, 6, 1536, (2, 5, 8, 11)),
    'base': ViTArch(768, 12, 12, 3072, (2, 5, 8, 11)),
    'large': ViTArch(1024, 24, 16, 4096, (5, 11, 17, 23)),
}


class PatchEmbed(nn.Module):
    """Non-overlapping patches: ``[B, 3, H, W]`` to ``[B, ceil(H/p), ceil(W/p), C]``.

    Args:
        in_channels (int): Channels of the image.
        embed_dims (int): Channels ``C`` of the tokens.
        patch_size (int): Side ``p`` of a patch in pixels.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the patches; the image is padded with zeros, right and bottom, to whole patches."""
        h, w = x.shape[-2:]
        pad_h, pad_w = -h % self.patch_size, -w % self.patch_size
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        return self.proj(x).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between, on the last dimension."""

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., C]`` to ``[..., C]``."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block, in windows or global.

    Args:
        embed_dims (int): Channels of the tokens.
        num_heads (int): Number of heads.
        head_dims (int, optional): Channels of a head.
        feedforward_channels (int): Hidden units of the MLP.
        window_size (int): Side of a window in tokens; 0 attends over the whole map.
        rel_pos_size (int, optional): Side of the relative-position tables; None for none.
        drop_path (float): Rate of stochastic depth, on both branches.
        norm_eps (float): Epsilon of both LayerNorms.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        head_dims: int | None,
        feedforward_channels: int,
        window_size: int,
        rel_pos_size: int | None,
        drop_path: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.attn = WindowAttention(embed_dims, num_heads, head_dims, rel_pos_size)
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = Mlp(embed_dims, feedforward_channels)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[B, H, W, C]`` to tokens of the same shape."""
        size = x.shape[1:3]
        y = self.norm1(x)
        if self.window_size:
            y, padded = window_partition(y, self.window_size)
            y = self.attn(y)
            y = window_unpartition(y, self.window_size, padded, size)
        else:
            y = self.attn(y)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


@MODELS.register_module()
class ViTDet(BaseModule):
    """Plain, non-hierarchical ViT backbone with window attention.

    From Li et al., *Exploring Plain Vision Transformer Backbones for Object Detection*, ECCV 2022.
    No class token and no final norm; one map of stride ``patch_size``. The absolute positions keep
    the grid they were pre-trained on and are resized bicubically in the forward, so that MAE, DeiT
    and published ViTDet weights load without conversion: their key names are understood by
    :func:`.vit_keys.to_vitdet_keys`.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, or the fields of
            :class:`ViTArch` (and ``head_dims``, where a head is not ``embed_dims // num_heads``
            wide).
        img_size (int | Sequence[int]): Input size in pixels that the relative positions of global
            blocks are stored for; any other input size works, with interpolation. Defaults to 1024.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        window_size (int): Side of the windows in tokens; 0 makes every block global. Defaults to
            14.
        use_rel_pos (bool): Decomposed relative positions in every block. Defaults to True.
        pretrain_img_size (int): Image size, in pixels, of the stored absolute positions. Defaults
            to 224.
        pretrain_use_cls_token (bool): Whether the stored absolute positions begin with that of a
            class token (never used here). Defaults to True, as in the published checkpoints.
        drop_path_rate (float): Stochastic depth of the last block, growing linearly. Defaults to 0.
        norm_eps (float): Epsilon of the LayerNorms. Defaults to 1e-6.
        out_indices (int | Sequence[int]): Blocks whose outputs are returned. Defaults to -1, the
            last.
        frozen_stages (int): Freeze the embeddings (0) and the first ``frozen_stages`` blocks; -1
            for none. Defaults to -1.
        with_cp (bool): Recompute the activations of each block in the backward. Defaults to False.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')``
            loads strictly: only relative positions and the layers that a backbone does not have may
            differ.

    Raises:
        ValueError: On an unknown ``arch``, an index out of range, or an image smaller than a patch.
    """

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | Sequence[int] = 1024,
        patch_size: int = 16,
        in_channels: int = 3,
        window_size: int = 14,
        use_rel_pos: bool = True,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        head_dims = None
        if isinstance(arch, str):
            if arch not in ARCHS:
                raise ValueError(
                    f"ViTDet has no arch '{arch}'; choose from {sorted(ARCHS)} or give a dict."
                )
            sizes = ARCHS[arch]
        else:
            arch = dict(arch)
            head_dims = arch.pop('head_dims', None)
            sizes = ViTArch(**arch)
        self.arch = sizes
        self.embed_dims = sizes.embed_dims
        self.num_layers = sizes.num_layers
        self.patch_size = patch_size
        self.window_size = window_size
        self.with_cp = with_cp
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.out_indices = self._absolute_indices(out_indices)
        self.frozen_stages = frozen_stages

        self.patch_embed = PatchEmbed(in_channels, sizes.embed_dims, patch_size)
        self.pretrain_grid = pretrain_img_size // patch_size
        positions = self.pretrain_grid**2 + int(pretrain_use_cls_token)
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, sizes.embed_dims))

        side = img_size if isinstance(img_size, int) else max(img_size)
        global_indices = {i % sizes.num_layers for i in sizes.global_indices}
        self.global_indices = (
            tuple(sorted(global_indices)) if window_size else tuple(range(sizes.num_layers))
        )
        self.blocks = nn.ModuleList()
        for i in range(sizes.num_layers):
            window = 0 if i in self.global_indices else window_size
            self.blocks.append(
                Block(
                    sizes.embed_dims,
                    sizes.num_heads,
                    head_dims,
                    sizes.feedforward_channels,
                    window,
                    (window or side // patch_size) if use_rel_pos else None,
                    drop_path_rate * i / max(sizes.num_layers - 1, 1),
                    norm_eps,
                )
            )
        self._register_load_state_dict_pre_hook(partial(self._translate_keys, positions))
        self._freeze()

    def _absolute_indices(self, indices: int | Sequence[int]) -> tuple[int, ...]:
        indices = (indices,) if isinstance(indices, int) else tuple(indices)
        for index in indices:
            if not -self.num_layers <= index < self.num_layers:
                raise ValueError(
                    f'out_indices {index} is out of range: ViTDet has {self.num_layers} blocks.'
                )
        return tuple(sorted(index % self.num_layers for index in indices))

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        self.pos_embed.requires_grad_(False)
        for module in [self.patch_embed, *self.blocks[: self.frozen_stages]]:
            module.requires_grad_(False)

    def train(self, mode: bool = True):
        """Switch the mode; frozen blocks stay in evaluation mode, without drop path."""
        super().train(mode)
        if self.frozen_stages >= 0:
            for module in [self.patch_embed, *self.blocks[: self.frozen_stages]]:
                module.eval()
        return self

    @staticmethod
    def _translate_keys(positions, state_dict, prefix, *args) -> None:
        own = {
            k[len(prefix) :]: state_dict.pop(k) for k in list(state_dict) if k.startswith(prefix)
        }
        converted, dropped = to_vitdet_keys(own, positions)
        state_dict.update({prefix + k: v for k, v in converted.items()})
        if dropped:
            MMLogger.get_current_instance().info(f'ViTDet has no place for {dropped}: not loaded.')

    def init_weights(self) -> None:
        """Initialise as the published ViTDet, or load ``init_cfg`` strictly.

        Raises:
            RuntimeError: If keys are missing (relative positions excepted), unexpected or of
                another shape.
        """
        init_cfg = self.init_cfg
        if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
            self._load_pretrained(init_cfg['checkpoint'], init_cfg.get('prefix', ''))
            self._is_init = True
            return
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        super().init_weights()

    def _load_pretrained(self, path: str, prefix: str) -> None:
        state_dict = unwrap_state_dict(CheckpointLoader.load_checkpoint(path, map_location='cpu'))
        if prefix:
            state_dict = {
                k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)
            }
        elif any(k.startswith('backbone.') for k in state_dict):
            state_dict = {k[9:]: v for k, v in state_dict.items() if k.startswith('backbone.')}
        converted, dropped = to_vitdet_keys(state_dict, self.pos_embed.shape[1])
        own = self.state_dict()
        shapes = [
            f'{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}'
            for k, v in converted.items()
            if k in own and own[k].shape != v.shape
        ]
        missing = [k for k in own if k not in converted and not RELATIVE_POSITION.search(k)]
        unexpected = [k for k in converted if k not in own]
        if missing or unexpected or shapes:
            raise RuntimeError(
                f'{path} does not hold the weights of this ViTDet. Missing: {missing}. Unexpected: '
                f'{unexpected}. '
                f'Of another shape: {shapes}. Give the arch, pretrain_img_size and '
                'pretrain_use_cls_token the file was made with.'
            )
        self.load_state_dict(converted, strict=False)
        fresh = [k for k in own if k not in converted]
        MMLogger.get_current_instance().info(
            f'ViTDet: {len(converted)} tensors from {path}; not used: {dropped or "none"}; started '
            f'at zero: {fresh or "none"}'
        )

    def absolute_positions(self, size: tuple[int, int]) -> Tensor:
        """Absolute positions ``[1, H, W, C]`` for ``size = (H, W)`` tokens, resized bicubically."""
        table = self.pos_embed[:, int(self.pretrain_use_cls_token) :]
        table = table.view(1, self.pretrain_grid, self.pretrain_grid, -1)
        if size == (self.pretrain_grid, self.pretrain_grid):
            return table
        table = table.permute(0, 3, 1, 2)
        table = F.interpolate(table, size=size, mode='bicubic', align_corners=False)
        return table.permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x (Tensor): Normalised images ``[B, in_channels, H, W]``.

        Returns:
            tuple[Tensor]: One ``[B, C, ceil(H/p), ceil(W/p)]`` per entry of ``out_indices``, in
            ascending order.
        """
        if min(x.shape[-2:]) < self.patch_size:
            raise ValueError(
                f'An image of {tuple(x.shape[-2:])} px is smaller than one {self.patch_size} px '
                'patch.'
            )
        x = self.patch_embed(x)
        x = x + self.absolute_positions(tuple(x.shape[1:3]))
        outs = []
        for i, block in enumerate(self.blocks):
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i in self.out_indices:
                outs.append(x.permute(0, 3, 1, 2).contiguous())
        return tuple(outs)
