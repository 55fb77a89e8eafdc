"""A plain ViT whose first layers can act as convolutions."""

from collections.abc import Mapping
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdfkd.registry import MODELS

from .plain_vit import Attention, PlainViT


class ConvAttention(Attention):
    """Self-attention with scores of relative positions, by which a head can be a convolution.

    ``A_h = softmax(Q_h K_h^T / sqrt(d) - a_h |delta_ij - c_h|^2)``, ``delta_ij`` the offset from
    patch ``i`` to patch ``j`` in patches, with a learned sharpness ``a_h`` and centre ``c_h`` of
    each head: where ``a_h`` is large, every patch reads the one at offset ``c_h``, and the heads
    together are a convolution (Cordonnier et al., ICLR 2020). Centres start at the offsets nearest
    to zero, one for each head. Prefix tokens have no place: their scores are zero.

    Args:
        dims (int): Channels of the tokens.
        num_heads (int): Heads.
        sharpness (float): ``a_h`` at the start.
        drop (float): Dropout of the attention, which keeps it from being local alone.
    """

    def __init__(self, dims: int, num_heads: int, sharpness: float, drop: float) -> None:
        super().__init__(dims, num_heads, drop)
        reach = range(-num_heads, num_heads + 1)
        near = sorted(product(reach, reach), key=lambda c: (c[0] ** 2 + c[1] ** 2, c))
        self.centres = nn.Parameter(torch.tensor(near[:num_heads], dtype=torch.float))
        self.sharpness = nn.Parameter(torch.full((num_heads,), float(sharpness)))

    def scores(self, queries: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[1, heads, P + h w, P + h w]``, as the queries' dtype is."""
        rows, columns = (torch.arange(n, device=queries.device) for n in grid)
        places = torch.cartesian_prod(rows, columns).to(self.centres)
        offsets = places[None] - places[:, None]
        far = (offsets[None] - self.centres[:, None, None]).square().sum(-1)
        extra = queries.shape[2] - len(places)
        scores = F.pad(-self.sharpness[:, None, None] * far, (extra, 0, extra, 0))
        return scores[None].to(queries.dtype)


@MODELS.register_module()
class ConvAttentionViT(PlainViT):
    """A ViT with multi-head convolutional attention in its first layers (DearKD, CVPR 2022).

    What is known of DearKD's layers (papers.md Part 5) is that relative positions are added to the
    attention so that heads can act as a convolution, and that dropout keeps them from becoming
    purely local. The form here, :class:`ConvAttention`, is ours. Outputs are those of mmpretrain's
    ``VisionTransformer`` with ``out_type='cls_token'``, or ``DistilledVisionTransformer``.

    Args:
        arch (str | Mapping): As of mmpretrain: ``'deit-tiny'``, ``'deit-small'``, ``'deit-base'``,
            or ``embed_dims``, ``num_layers``, ``num_heads`` and ``feedforward_channels``. Defaults
            to ``'deit-tiny'``.
        conv_layers (int): How many of the first layers have it. Defaults to 4.
        sharpness (float): How local they start: the score of a patch falls by it at one patch from
            a head's centre. Defaults to 1.
        attn_drop (float): Dropout of their attention. Defaults to 0.1.
        img_size (int): Input size in pixels of the stored positions; other sizes are interpolated.
            Defaults to 224.
        patch_size (int): Side of a patch in pixels. Defaults to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        distilled (bool): Whether there is a distillation token. Defaults to True.
        norm_eps (float): Epsilon of the LayerNorms. Defaults to 1e-6, mmpretrain's.
        drop_path_rate (float): Stochastic depth of the last layer, growing linearly. Defaults to 0.
        init_cfg (dict, optional): mmengine's initialisation.

    Raises:
        ValueError: On an unknown arch, or more such layers than there are.
    """

    def __init__(
        self,
        arch: str | Mapping = 'deit-tiny',
        conv_layers: int = 4,
        sharpness: float = 1.0,
        attn_drop: float = 0.1,
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        distilled: bool = True,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        # Read by attention(), which the base calls.
        self._conv = (conv_layers, sharpness, attn_drop)
        super().__init__(
            arch, img_size, patch_size, in_channels, distilled, norm_eps, drop_path_rate, init_cfg
        )
        if not 0 <= conv_layers <= self.num_layers:
            raise ValueError(
                f'ConvAttentionViT: conv_layers={conv_layers} of {self.num_layers} layers.'
            )

    def attention(self, index: int) -> Attention:
        """Convolutional attention in the first layers."""
        layers, sharpness, drop = self._conv
        if index >= layers:
            return super().attention(index)
        return ConvAttention(self.embed_dims, self.num_heads, sharpness, drop)

    def is_own(self, key: str) -> bool:
        """Sharpness and centres."""
        return key.endswith(('.attn.sharpness', '.attn.centres'))
