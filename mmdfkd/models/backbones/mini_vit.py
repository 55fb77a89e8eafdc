"""A plain ViT whose consecutive layers share their weights."""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdfkd.registry import MODELS
from mmdfkd.utils.vit_names import timm_names

ARCHS = {
    'deit-tiny': dict(embed_dims=192, num_layers=12, num_heads=3, feedforward_channels=768),
    'deit-small': dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536),
    'deit-base': dict(embed_dims=768, num_layers=12, num_heads=12, feedforward_channels=3072),
}
_OUT_TYPES = ('cls_token', 'raw', 'featmap', 'avg_featmap')
_BLOCK = re.compile(r'^blocks\.(\d+)\.(attn\.|mlp\.|norm)(qkv|proj|fc1|fc2|1|2)\.(weight|bias)$')


class SharedWeights(nn.Module):
    """The large matrices of a block: of its attention and of its MLP."""

    def __init__(self, dims: int, hidden: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)
        self.fc1 = nn.Linear(dims, hidden)
        self.fc2 = nn.Linear(hidden, dims)


class MiniLayer(nn.Module):
    """What a layer has of its own: norms, and light transformations of the shared weights' outputs.

    With ``Q_n, K_n, V_n`` of the shared attention, head ``k`` of a layer returns::

        O_k = (sum_n B_kn softmax(sum_m A_nm Q_m K_m^T / sqrt(d))) V_k

    and the MLP reads ``C * x``, a depth-wise convolution of the map of patches (prefix tokens pass
    as they are). ``A``, ``B`` and ``C`` are the identity at the start.

    Args:
        dims (int): Channels of the tokens.
        num_heads (int): Heads of the shared attention.
        kernel_size (int): Side of the convolution, odd; 0 for none.
        drop_path (float): Rate of stochastic depth, on both branches.
        norm_eps (float): Epsilon of both LayerNorms.
    """

    def __init__(
        self, dims: int, num_heads: int, kernel_size: int, drop_path: float, norm_eps: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln1 = nn.LayerNorm(dims, eps=norm_eps)
        # The shared projection's output in this layer, for heads that tap it.
        self.qkv = nn.Identity()
        self.mix_logits = nn.Parameter(torch.eye(num_heads))
        self.mix_attention = nn.Parameter(torch.eye(num_heads))
        self.ln2 = nn.LayerNorm(dims, eps=norm_eps)
        self.conv = None
        if kernel_size:
            self.conv = nn.Conv2d(
                dims, dims, kernel_size, padding=kernel_size // 2, groups=dims, bias=False
            )
            nn.init.dirac_(self.conv.weight, groups=dims)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, shared: SharedWeights, grid: tuple[int, int]) -> Tensor:
        """Map tokens ``[B, N, C]``, of which the last ``h w`` are patches, to tokens."""
        x = x + self.drop_path(self._attend(self.ln1(x), shared))
        y = self._local(self.ln2(x), grid)
        return x + self.drop_path(shared.fc2(F.gelu(shared.fc1(y))))

    def _attend(self, x: Tensor, shared: SharedWeights) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(shared.qkv(x)).reshape(b, n, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        attention = torch.einsum('km,bmij->bkij', self.mix_logits, logits).softmax(-1)
        attention = torch.einsum('kn,bnij->bkij', self.mix_attention, attention)
        return shared.proj((attention @ v).transpose(1, 2).reshape(b, n, c))

    def _local(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.conv is None:
            return x
        prefix, patches = x.split([x.shape[1] - grid[0] * grid[1], grid[0] * grid[1]], 1)
        patches = self.conv(patches.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        return torch.cat([prefix, patches], 1)


class PatchEmbed(nn.Module):
    """Non-overlapping patches; the convolution has mmpretrain's name."""

    def __init__(self, in_channels: int, dims: int, patch_size: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dims, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Embed ``[B, 3, H, W]`` as ``[B, C, h, w]``, padded to whole patches right and below."""
        size = self.projection.stride[0]
        return self.projection(F.pad(x, (0, -x.shape[-1] % size, 0, -x.shape[-2] % size)))


@MODELS.register_module()
class MiniViT(BaseModule):
    """Weight multiplexing (MiniViT, Zhang et al., CVPR 2022; papers.md Part 3.9).

    Every ``share`` consecutive layers use one set of :class:`SharedWeights`; each keeps its own
    LayerNorms and light transformations, see :class:`MiniLayer`. Outputs are those of mmpretrain's
    ``VisionTransformer``, whose classification heads it takes. The convolution before the MLP is
    our reading of the paper's light transformation of the MLP; its relative positions are left out.

    Args:
        arch (str | Mapping): ``'deit-tiny'``, ``'deit-small'``, ``'deit-base'``, or ``embed_dims``,
            ``num_layers``, ``num_heads`` and ``feedforward_channels``. Defaults to ``'deit-base'``.
        img_size (int): Input size in pixels of the stored positions; other sizes are interpolated.
            Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        share (int): Consecutive layers that share weights; 1 shares nothing. Defaults to 2, as
            published.
        kernel_size (int): Side of the convolution before the MLP, odd; 0 for none. Defaults to 3.
        share_from (str): Which of the teacher's blocks a shared one starts from: the ``'first'`` or
            ``'last'`` of its layers, or their ``'mean'``. Defaults to ``'first'``.
        out_indices (int | Sequence[int]): Layers whose outputs are returned. Defaults to -1.
        out_type (str): ``'cls_token'``, ``'raw'``, ``'featmap'`` or ``'avg_featmap'``, as
            mmpretrain's. Defaults to ``'cls_token'``.
        final_norm (bool): Normalise the last layer's tokens. Defaults to True.
        norm_eps (float): Epsilon of the LayerNorms. Defaults to 1e-6, mmpretrain's.
        drop_path_rate (float): Stochastic depth of the last layer, growing linearly. Defaults to 0.
        init_cfg (dict, optional): mmengine's initialisation.

    Raises:
        ValueError: On an unknown arch, ``out_type`` or ``share_from``, an even kernel, or an index
            out of range.
    """

    num_extra_tokens = 1

    def __init__(
        self,
        arch: str | Mapping = 'deit-base',
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        share: int = 2,
        kernel_size: int = 3,
        share_from: str = 'first',
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'cls_token',
        final_norm: bool = True,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if isinstance(arch, str) and arch not in ARCHS:
            raise ValueError(f"MiniViT has no arch '{arch}'; choose from {sorted(ARCHS)}.")
        sizes = ARCHS[arch] if isinstance(arch, str) else dict(arch)
        if set(sizes) != set(ARCHS['deit-tiny']):
            raise ValueError(f'MiniViT: arch needs {sorted(ARCHS["deit-tiny"])}, not {sizes}.')
        if out_type not in _OUT_TYPES:
            raise ValueError(f'MiniViT: out_type must be one of {_OUT_TYPES}, not {out_type!r}.')
        if share_from not in ('first', 'last', 'mean'):
            raise ValueError(
                f"MiniViT: share_from must be 'first', 'last' or 'mean', not {share_from!r}."
            )
        if share < 1 or kernel_size < 0 or (kernel_size and kernel_size % 2 == 0):
            raise ValueError(
                f'MiniViT: share must be at least 1 and kernel_size odd or 0, not {share} and '
                f'{kernel_size}.'
            )
        dims, depth, heads = (sizes[k] for k in ('embed_dims', 'num_layers', 'num_heads'))
        self.embed_dims, self.num_layers = dims, depth
        self.share, self.share_from = share, share_from
        self.out_type = out_type
        indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        if any(not -depth <= i < depth for i in indices):
            raise ValueError(f'MiniViT: out_indices {indices} of {depth} layers.')
        self.out_indices = tuple(sorted(i % depth for i in indices))
        self.grid = (img_size // patch_size,) * 2

        self.patch_embed = PatchEmbed(in_channels, dims, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + 1, dims))
        self.shared = nn.ModuleList(
            SharedWeights(dims, sizes['feedforward_channels']) for _ in range(-(-depth // share))
        )
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(
            MiniLayer(dims, heads, kernel_size, rate, norm_eps) for rate in rates
        )
        self.ln1 = nn.LayerNorm(dims, eps=norm_eps) if final_norm else nn.Identity()
        self.ln2 = nn.LayerNorm(dims, eps=norm_eps) if out_type == 'avg_featmap' else None

    def init_weights(self) -> None:
        """Initialise as a plain ViT: truncated normals of 0.02, no biases."""
        for parameter in (self.pos_embed, self.cls_token):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        super().init_weights()

    @torch.no_grad()
    def multiplex(self, state_dict: Mapping[str, Tensor]) -> None:
        """Start from a plain ViT of the same sizes, whose blocks it multiplexes.

        Norms, embeddings and the class token are copied; every shared block starts as
        ``share_from`` says, every transformation as the identity. With ``share=1`` it computes what
        the plain ViT does.

        Args:
            state_dict (Mapping[str, Tensor]): Of the backbone, in the names of any library that
                :mod:`mmdfkd.utils.vit_names` knows.

        Raises:
            ValueError: If a weight is missing, of another shape, or has no place here; names it.
        """
        groups: dict[str, list[Tensor]] = {}
        for name, value in timm_names(state_dict).items():
            groups.setdefault(self._place(name), []).append(value)
        own = self.state_dict()
        kept = [k for k in own if k.endswith(('.mix_logits', '.mix_attention', '.conv.weight'))]
        start = {'first': lambda v: v[0], 'last': lambda v: v[-1]}.get(
            self.share_from, lambda v: torch.stack(v).mean(0)
        )
        found = {key: start(values) for key, values in groups.items()}
        wrong = [k for k in found if k in own and found[k].shape != own[k].shape]
        missing = [k for k in own if k not in found and k not in kept]
        unexpected = [k for k in found if k not in own]
        if wrong or missing or unexpected:
            raise ValueError(
                'MiniViT starts from a plain ViT of its own sizes. Of another shape: '
                f'{wrong[:6]}; missing: {missing[:6]}; without a place here: {unexpected[:6]}.'
            )
        for layer in self.layers:
            nn.init.eye_(layer.mix_logits)
            nn.init.eye_(layer.mix_attention)
            if layer.conv is not None:
                nn.init.dirac_(layer.conv.weight, groups=self.embed_dims)
        self.load_state_dict({**{k: self.state_dict()[k] for k in kept}, **found})

    def _place(self, name: str) -> str:
        """Where a plain ViT's parameter, in timm's names, has its place."""
        found = _BLOCK.match(name)
        if found:
            block, _, part, kind = found.groups()
            if part in '12':
                return f'layers.{block}.ln{part}.{kind}'
            return f'shared.{int(block) // self.share}.{part}.{kind}'
        for theirs, ours in (('patch_embed.proj.', 'patch_embed.projection.'), ('norm.', 'ln1.')):
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return name.replace('fc_norm.', 'ln2.')

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.pos_embed
        extra, table = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        table = table.transpose(1, 2).unflatten(2, self.grid)
        table = F.interpolate(table, size=grid, mode='bicubic', align_corners=False)
        return torch.cat([extra, table.flatten(2).transpose(1, 2)], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of normalised images ``[B, in_channels, H, W]``.

        Returns:
            tuple[Tensor]: One per entry of ``out_indices``: ``[B, C]`` (``'cls_token'``,
            ``'avg_featmap'``), ``[B, 1 + h w, C]`` (``'raw'``) or ``[B, C, h, w]`` (``'featmap'``).
        """
        x = self.patch_embed(x)
        grid = (x.shape[-2], x.shape[-1])
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + self._positions(grid)
        outs = []
        for i, layer in enumerate(self.layers):
            x = layer(x, self.shared[i // self.share], grid)
            if i == self.num_layers - 1:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(self._output(x, grid))
        return tuple(outs)

    def _output(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.out_type == 'cls_token':
            return x[:, 0]
        if self.out_type == 'raw':
            return x
        if self.out_type == 'featmap':
            return x[:, 1:].transpose(1, 2).unflatten(2, grid)
        return self.ln2(x[:, 1:].mean(1))
