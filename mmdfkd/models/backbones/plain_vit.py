"""A plain ViT whose names are mmpretrain's, for backbones that change one thing about it."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdfkd.utils.convert import ConversionError, convert_vit

from .mini_vit import ARCHS, PatchEmbed

_BACKBONE = 'backbone.'


class Attention(nn.Module):
    """Multi-head self-attention; a subclass may add scores.

    Args:
        dims (int): Channels of the tokens.
        num_heads (int): Heads, a divisor of ``dims``.
        drop (float): Dropout of the attention. Defaults to 0.
    """

    def __init__(self, dims: int, num_heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.head_dims = num_heads, dims // num_heads
        self.drop = drop
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)

    def scores(self, queries: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """What is added to the logits of queries ``[B, heads, N, d]``; nothing here."""
        return None

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map tokens ``[B, P + h w, C]`` to tokens; ``grid`` is that of the image's patches."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dims))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        drop = self.drop if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, self.scores(q, grid), dropout_p=drop)
        return self.proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers, called as in mmcv's ``FFN``."""

    def __init__(self, dims: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(dims, hidden), nn.GELU()), nn.Linear(hidden, dims)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens to tokens."""
        return self.layers(x)


class Layer(nn.Module):
    """A pre-norm block."""

    def __init__(
        self, dims: int, attention: Attention, hidden: int, drop_path: float, norm_eps: float
    ) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dims, eps=norm_eps)
        self.attn = attention
        self.ln2 = nn.LayerNorm(dims, eps=norm_eps)
        self.ffn = MLP(dims, hidden)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    @property
    def num_heads(self) -> int:
        """Of the attention."""
        return self.attn.num_heads

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map tokens ``[B, N, C]`` to tokens."""
        x = x + self.drop_path(self.attn(self.ln1(x), grid))
        return x + self.drop_path(self.ffn(self.ln2(x)))


class PlainViT(BaseModule):
    """Base of backbones that are plain ViTs but for one thing.

    Parameters have the names of mmpretrain's ``VisionTransformer`` and, with ``distilled``,
    ``DistilledVisionTransformer``, and so have the modules that heads tap; its classification heads
    take the output. Subclasses change :meth:`attention` or :meth:`before`.

    Args:
        arch (str | Mapping): ``'deit-tiny'``, ``'deit-small'``, ``'deit-base'``, or ``embed_dims``,
            ``num_layers``, ``num_heads`` and ``feedforward_channels``. Defaults to
            ``'deit-small'``.
        img_size (int): Input size in pixels of the stored positions; other sizes are interpolated.
            Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        distilled (bool): Whether there is a distillation token behind the class token. Defaults to
            False.
        norm_eps (float): Epsilon of the LayerNorms. Defaults to 1e-6, mmpretrain's.
        drop_path_rate (float): Stochastic depth of the last layer, growing linearly. Defaults to 0.
        init_cfg (dict, optional): mmengine's initialisation.

    Raises:
        ValueError: On an unknown arch.
    """

    def __init__(
        self,
        arch: str | Mapping = 'deit-small',
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        distilled: bool = False,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        who = type(self).__name__
        if isinstance(arch, str) and arch not in ARCHS:
            raise ValueError(f"{who} has no arch '{arch}'; choose from {sorted(ARCHS)}.")
        sizes = ARCHS[arch] if isinstance(arch, str) else dict(arch)
        if set(sizes) != set(ARCHS['deit-tiny']):
            raise ValueError(f'{who}: arch needs {sorted(ARCHS["deit-tiny"])}, not {sizes}.')
        self.embed_dims, self.num_layers = sizes['embed_dims'], sizes['num_layers']
        self.num_heads = sizes['num_heads']
        self.num_extra_tokens = 2 if distilled else 1
        self.grid = (img_size // patch_size,) * 2
        dims, patches = self.embed_dims, self.grid[0] * self.grid[1]
        self.patch_embed = PatchEmbed(in_channels, dims, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dims)) if distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_extra_tokens + patches, dims))
        rates = [drop_path_rate * i / max(self.num_layers - 1, 1) for i in range(self.num_layers)]
        self.layers = nn.ModuleList(
            Layer(dims, self.attention(i), sizes['feedforward_channels'], rate, norm_eps)
            for i, rate in enumerate(rates)
        )
        self.ln1 = nn.LayerNorm(dims, eps=norm_eps)

    def attention(self, index: int) -> Attention:
        """The attention of a layer."""
        return Attention(self.embed_dims, self.num_heads)

    def before(self, index: int, tokens: Tensor) -> Tensor:
        """What a layer is given: the tokens ``[B, P + N, C]`` of the last one."""
        return tokens

    def init_weights(self) -> None:
        """Initialise as a plain ViT: truncated normals of 0.02, no biases."""
        for parameter in (self.pos_embed, self.cls_token, self.dist_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        super().init_weights()

    @torch.no_grad()
    def take_over(self, state_dict: Mapping[str, Tensor]) -> None:
        """Start from a plain ViT of the same sizes; what it has not is left as it is.

        Args:
            state_dict (Mapping[str, Tensor]): Of the backbone, in the names of any library that
                :mod:`mmdfkd.utils.vit_names` knows.

        Raises:
            ValueError: If a weight is missing, of another shape, or has no place here; names it.
        """
        who = type(self).__name__
        try:
            found = convert_vit(state_dict).weights
        except ConversionError as error:
            raise ValueError(f'{who} starts from a plain ViT: {error}') from None
        found = {
            key.removeprefix(_BACKBONE): value
            for key, value in found.items()
            if key.startswith(_BACKBONE)
        }
        own = self.state_dict()
        wrong = [k for k in found if k in own and found[k].shape != own[k].shape]
        missing = [k for k in own if k not in found and not self.is_own(k)]
        unexpected = [k for k in found if k not in own]
        if wrong or missing or unexpected:
            raise ValueError(
                f'{who} starts from a plain ViT of its own sizes. Of another shape: {wrong[:6]}; '
                f'missing: {missing[:6]}; without a place here: {unexpected[:6]}.'
            )
        self.load_state_dict({**own, **found})

    def is_own(self, key: str) -> bool:
        """Whether a parameter is one that a plain ViT has not."""
        return False

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        if grid == self.grid:
            return self.pos_embed
        extra, table = self.pos_embed.tensor_split([self.num_extra_tokens], 1)
        table = table.transpose(1, 2).unflatten(2, self.grid)
        table = F.interpolate(table, size=grid, mode='bicubic', align_corners=False)
        return torch.cat([extra, table.flatten(2).transpose(1, 2)], 1)

    def forward(self, x: Tensor) -> tuple[Tensor | tuple[Tensor, Tensor]]:
        """Compute the features of normalised images ``[B, in_channels, H, W]``.

        Returns:
            tuple: One entry: the class token ``[B, C]`` behind the final norm, or the class and the
            distillation token.
        """
        x = self.patch_embed(x)
        grid = (x.shape[-2], x.shape[-1])
        extra = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.dist_token) if t is not None
        ]
        x = torch.cat([*extra, x.flatten(2).transpose(1, 2)], 1) + self._positions(grid)
        for i, layer in enumerate(self.layers):
            x = layer(self.before(i, x), grid)
        x = self.ln1(x)
        return (x[:, 0],) if self.dist_token is None else ((x[:, 0], x[:, 1]),)
