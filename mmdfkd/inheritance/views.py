"""One way to look into the plain ViTs of mmpretrain and into ViTDet."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmdfkd.models.backbones.vitdet import ViTDet
from mmdfkd.models.layers import window_partition, window_unpartition

from .patches import resize_tokens


@contextmanager
def replaced(module: nn.Module, **parts: nn.Module) -> Iterator[None]:
    """Exchange children of ``module`` while the context is open."""
    originals = {name: getattr(module, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(module, name, part)
        yield
    finally:
        for name, part in originals.items():
            setattr(module, name, part)


class BlockView:
    """The layers of one pre-norm block.

    Attributes:
        norm1, norm2: The LayerNorms before attention and MLP.
        qkv, proj, fc1, fc2: The linear layers.
        act: The activation of the MLP.
        scales: LayerScale weights ``[D]`` after ``proj`` and ``fc2``, or None each.
    """

    def __init__(self, block, norm1, qkv, proj, norm2, fc1, act, fc2, scales=(None, None)) -> None:
        self.block = block
        self.norm1, self.qkv, self.proj = norm1, qkv, proj
        self.norm2, self.fc1, self.act, self.fc2 = norm2, fc1, act, fc2
        self.scales = scales

    def scaled(self, layer: nn.Linear, site: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of ``proj`` (0) or ``fc2`` (1) with their LayerScale, float64."""
        bias = (
            layer.bias.double()
            if layer.bias is not None
            else layer.weight.new_zeros(len(layer.weight)).double()
        )
        weight, scale = layer.weight.double(), self.scales[site]
        if scale is not None:
            weight, bias = weight * scale.double()[:, None], bias * scale.double()
        return weight, bias

    def write(self, tokens: Tensor, site: int) -> Tensor:
        """``proj`` (site 0) or ``fc2`` (site 1) with its LayerScale."""
        out = (self.proj, self.fc2)[site](tokens)
        return out if self.scales[site] is None else out * self.scales[site]


class BlocksView(ABC):
    """Blocks of one stream of tokens taken apart.

    Attributes:
        dims: Channels of the tokens.
        blocks: Views of the blocks.
        kinds: Of each block, such as ``'window'`` or ``'global'``; blocks stand in for those of
            their own kind only.
        head_dims, num_heads: Of the attention.
    """

    dims: int
    blocks: list[BlockView]
    kinds: tuple[str, ...]
    head_dims: int
    num_heads: int

    @abstractmethod
    def mix(self, index: int, normed: Tensor) -> Tensor:
        """Outputs of the heads, before ``proj``, from normalised tokens ``[B, ..., D]``."""

    @abstractmethod
    def head_tables(self, index: int, heads: Tensor | None = None) -> dict[str, Tensor]:
        """Parameters of a block that belong to the heads alone, by name.

        Args:
            index (int): Of the block.
            heads (Tensor, optional): Those of these heads only, where each head has its own.
        """

    def forward_block(self, index: int, tokens: Tensor) -> Tensor:
        """One whole block."""
        return self.blocks[index].block(tokens)


class VitView(BlocksView):
    """A plain ViT taken apart."""

    #: Whether a student may have patches of another size, and if not, why.
    resamples = False
    fixed_patches = ''

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """Tokens that enter the first block: ``[B, ..., D]``."""

    @abstractmethod
    def patch_conv(self) -> nn.Conv2d:
        """The patch embedding."""

    @abstractmethod
    def token_parameters(self) -> dict[str, Tensor]:
        """Parameters ``[..., D]`` that are added to or put among the tokens, by name."""

    def table_for(self, student: 'VitView', name: str, table: Tensor) -> Tensor:
        """One of :meth:`token_parameters` for the grid of a student, float64."""
        return table.double()

    def places_of(
        self, student: 'VitView', image_size: tuple[int, int]
    ) -> Callable[[Tensor], Tensor]:
        """What takes tokens of this network to the places of a student's."""
        return lambda tokens: tokens


class ViTDetView(VitView):
    """View of :class:`mmdfkd.models.ViTDet`."""

    backbone_type = ViTDet
    fixed_patches = (
        "a detector's windows, pyramid and anchors are laid out in patches (name the student by a "
        'config of its own, with another start)'
    )

    def __init__(self, backbone: ViTDet) -> None:
        super().__init__(backbone)
        self.dims = backbone.embed_dims
        self.kinds = tuple(
            'global' if i in backbone.global_indices else 'window'
            for i in range(backbone.num_layers)
        )
        self.head_dims = backbone.blocks[0].attn.head_dims
        self.num_heads = backbone.blocks[0].attn.num_heads
        self.blocks = [
            BlockView(b, b.norm1, b.attn.qkv, b.attn.proj, b.norm2, b.mlp.fc1, b.mlp.act, b.mlp.fc2)
            for b in backbone.blocks
        ]

    def embed(self, inputs: Tensor) -> Tensor:
        """Tokens that enter the first block."""
        x = self.backbone.patch_embed(inputs)
        return x + self.backbone.absolute_positions(tuple(x.shape[1:3]))

    def mix(self, index: int, normed: Tensor) -> Tensor:
        """Outputs of the heads, before ``proj``."""
        block = self.backbone.blocks[index]
        with replaced(block.attn, proj=nn.Identity()):
            if not block.window_size:
                return block.attn(normed)
            windows, padded = window_partition(normed, block.window_size)
            return window_unpartition(
                block.attn(windows), block.window_size, padded, normed.shape[1:3]
            )

    def patch_conv(self) -> nn.Conv2d:
        """The patch embedding."""
        return self.backbone.patch_embed.proj

    def token_parameters(self) -> dict[str, Tensor]:
        """Parameters added to or put among the tokens."""
        return {'pos_embed': self.backbone.pos_embed}

    def head_tables(self, index: int, heads: Tensor | None = None) -> dict[str, Tensor]:
        """Relative-position tables, where there are any; all heads share them."""
        attn = self.backbone.blocks[index].attn
        return (
            {}
            if attn.rel_pos_h is None
            else {'rel_pos_h': attn.rel_pos_h, 'rel_pos_w': attn.rel_pos_w}
        )


class MmpretrainView(VitView):
    """View of mmpretrain's ``VisionTransformer`` and ``DistilledVisionTransformer``."""

    resamples = True

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.dims = backbone.embed_dims
        self.kinds = ('global',) * len(backbone.layers)
        if not isinstance(backbone.pre_norm, nn.Identity):
            raise ValueError(
                'Inheritance does not support a ViT with a norm before its first block '
                '(pre_norm=True).'
            )
        if backbone.out_type == 'avg_featmap' and backbone.final_norm:
            raise ValueError(
                "Inheritance supports out_type='avg_featmap' with final_norm=False only: two "
                'norms in a row cannot be rotated.'
            )
        if backbone.out_type not in ('cls_token', 'avg_featmap'):
            raise ValueError(
                "Inheritance supports out_type 'cls_token' and 'avg_featmap', not "
                f"'{backbone.out_type}'."
            )
        self.head_dims = backbone.layers[0].attn.head_dims
        self.num_heads = backbone.layers[0].attn.num_heads
        self.blocks = [self._view(layer) for layer in backbone.layers]

    @staticmethod
    def _view(layer: nn.Module) -> BlockView:
        ffn = getattr(layer.ffn, 'layers', None)
        if (
            ffn is None
            or not isinstance(ffn[0], nn.Sequential)
            or layer.ffn.num_fcs != 2
            or layer.attn.v_shortcut
        ):
            raise ValueError(
                'Inheritance needs a plain attention and a two-layer MLP, not a '
                f'{type(layer.ffn).__name__}.'
            )
        for norm in (layer.ln1, layer.ln2):
            if not isinstance(norm, nn.LayerNorm):
                raise ValueError(f'Inheritance needs LayerNorms, not a {type(norm).__name__}.')
        scales = []
        for gamma in (layer.attn.gamma1, layer.ffn.gamma2):
            weight = getattr(gamma, 'weight', None)
            scales.append(getattr(gamma, 'scale', None) if weight is None else weight)
        attn = layer.attn
        return BlockView(
            layer,
            layer.ln1,
            attn.qkv,
            attn.proj,
            layer.ln2,
            ffn[0][0],
            ffn[0][1],
            ffn[1],
            tuple(scales),
        )

    def embed(self, inputs: Tensor) -> Tensor:
        """Tokens that enter the first block."""
        net = self.backbone
        x, size = net.patch_embed(inputs)
        extra = [
            t.expand(len(x), -1, -1)
            for t in (net.cls_token, getattr(net, 'dist_token', None))
            if t is not None
        ]
        x = torch.cat([*extra, x], 1)
        return x + net.resize_pos_embed(
            net.pos_embed, net.patch_resolution, size, net.interpolate_mode, net.num_extra_tokens
        )

    def mix(self, index: int, normed: Tensor) -> Tensor:
        """Outputs of the heads, before ``proj``."""
        attn = self.backbone.layers[index].attn
        with replaced(attn, proj=nn.Identity(), gamma1=nn.Identity()):
            return attn(normed)

    def patch_conv(self) -> nn.Conv2d:
        """The patch embedding."""
        return self.backbone.patch_embed.projection

    def token_parameters(self) -> dict[str, Tensor]:
        """Parameters added to or put among the tokens."""
        names = ('pos_embed', 'cls_token', 'dist_token')
        return {
            n: getattr(self.backbone, n)
            for n in names
            if getattr(self.backbone, n, None) is not None
        }

    def head_tables(self, index: int, heads: Tensor | None = None) -> dict[str, Tensor]:
        """There are none."""
        return {}

    def table_for(self, student: 'VitView', name: str, table: Tensor) -> Tensor:
        """Positions are resized to the student's grid, as mmpretrain resizes them."""
        if name != 'pos_embed':
            return table.double()
        grids = (tuple(net.patch_resolution) for net in (self.backbone, student.backbone))
        return resize_tokens(table.double(), self.backbone.num_extra_tokens, *grids, 'bicubic')

    def places_of(
        self, student: 'VitView', image_size: tuple[int, int]
    ) -> Callable[[Tensor], Tensor]:
        """Tokens of patches are resized to the student's grid."""
        grids = [
            # Images are padded to whole patches.
            tuple(-(-n // k) for n, k in zip(image_size, conv.kernel_size, strict=True))
            for conv in (self.patch_conv(), student.patch_conv())
        ]
        return lambda tokens: resize_tokens(tokens, self.backbone.num_extra_tokens, *grids)

    def pool(self, tokens: Tensor) -> tuple[nn.LayerNorm | None, Tensor]:
        """What the classification head reads.

        Args:
            tokens (Tensor): Output of the last block ``[B, N, D]``.

        Returns:
            tuple: The last norm, or None, and its input ``[B, K, D]``: class token, class and
            distillation token, or the mean of the patches.
        """
        net = self.backbone
        if net.out_type == 'avg_featmap':
            return net.ln2, tokens[:, net.num_extra_tokens :].mean(1, keepdim=True)
        last = 2 if hasattr(net, 'dist_token') else 1
        return (net.ln1 if net.final_norm else None), tokens[:, :last]


def view_backbone(backbone: nn.Module) -> VitView:
    """Look into a backbone.

    Raises:
        ValueError: If it is not supported; names those that are.
    """
    if isinstance(backbone, ViTDet):
        return ViTDetView(backbone)
    if type(backbone).__name__ in ('VisionTransformer', 'DistilledVisionTransformer'):
        return MmpretrainView(backbone)
    raise ValueError(
        f'Inheritance does not support the backbone {type(backbone).__name__}. Supported: '
        'mmdfkd.ViTDet, and '
        "mmpretrain's VisionTransformer and DistilledVisionTransformer."
    )
