from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdfkd.registry import MODELS

from ..layers import WindowAttention


def _lifted(layer: nn.Linear, feature: Tensor) -> Tensor:
    """A linear layer over the channels of vectors, tokens or maps ``[B, C, H, W]``."""
    if feature.dim() == 4:
        return F.conv2d(feature, layer.weight[:, :, None, None], layer.bias)
    return layer(feature)


@MODELS.register_module()
class Lift(BaseModule):
    """A projector to the teacher's width that the student keeps at inference.

    A narrow student cannot carry features of a wide teacher, however they are aligned: the
    projector that lifts them is a part of the student then ("encoding mismatch", arXiv
    2511.15572, 2025; DeiT-Ti 74.9 -> 77.5 as published). A classifier's neck between backbone and
    head::

        neck=dict(type='mmdfkd.Lift', in_channels=192, out_channels=384),
        head=dict(type='VisionTransformerClsHead', in_channels=384, num_classes=1000)

    with ``FeatureHead(align='never')``, which compares the output of the neck.

    **SimKD** (Chen et al., CVPR 2022) is this neck before the *teacher's* classifier: load it by
    ``head.init_cfg=dict(type='Pretrained', checkpoint=..., prefix='head')`` (student
    ``init='config'``), and take that ``FeatureHead`` as the only distill head. No loss reaches the
    classifier then, so it is frozen when built, and stays the teacher's.

    Args:
        in_channels (int): Channels of the backbone's outputs.
        out_channels (int): The teacher's.
        init_cfg (dict, optional): mmengine's initialisation. By default the weight starts
            orthogonal, an isometry, and the bias at zero, whatever an ``init_cfg`` of the whole
            model does to its linear layers.
    """

    def __init__(self, in_channels: int, out_channels: int, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.proj = nn.Linear(in_channels, out_channels)
        self._start()

    def init_weights(self) -> None:
        """Start as :attr:`init_cfg` says; without one orthogonal."""
        begun = self.is_init
        super().init_weights()
        # The model's init_cfg, such as a TruncNormal of all linear layers, has been here before.
        if not self.init_cfg and not begun:
            self._start()

    def _start(self) -> None:
        nn.init.orthogonal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Lift each output of the backbone: vectors, tokens, or maps ``[B, C, H, W]``."""
        inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
        return tuple(_lifted(self.proj, feature) for feature in inputs)


@MODELS.register_module()
class WideLast(BaseModule):
    """A last block of the teacher's width behind a narrow backbone.

    The other remedy of arXiv 2511.15572 (DeiT-Ti 74.9 -> 78.2 as published): tokens are lifted
    before the last block, which is as wide as the teacher's. Give the backbone one layer less,
    ``out_type='raw'`` and ``final_norm=False``; this neck ends with the final norm and hands the
    class token to the head (the mean patch where there is none).

    Args:
        in_channels (int): Channels of the backbone's tokens.
        out_channels (int): The teacher's.
        num_heads (int): Of the block's attention.
        feedforward_channels (int, optional): Of its MLP. Defaults to 4 times ``out_channels``.
        prefix_tokens (int): Tokens before the patches; the first is the class token. Defaults to 1.
        init_cfg (dict, optional): mmengine's initialisation.

    Raises:
        ValueError: If the width is no multiple of the number of heads.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_heads: int,
        feedforward_channels: int | None = None,
        prefix_tokens: int = 1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if out_channels % num_heads:
            raise ValueError(
                f'WideLast: {out_channels} channels cannot be cut into {num_heads} heads.'
            )
        hidden = feedforward_channels or 4 * out_channels
        self.prefix_tokens = prefix_tokens
        self.lift = Lift(in_channels, out_channels)
        self.norm1 = nn.LayerNorm(out_channels, eps=1e-6)
        self.attn = WindowAttention(out_channels, num_heads)
        self.norm2 = nn.LayerNorm(out_channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(out_channels, hidden), nn.GELU(), nn.Linear(hidden, out_channels)
        )
        self.norm = nn.LayerNorm(out_channels, eps=1e-6)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor]:
        """From tokens ``[B, P + N, in]`` (the last of several) to a vector ``[B, out]``.

        Raises:
            ValueError: If they are no tokens.
        """
        tokens = inputs if isinstance(inputs, Tensor) else inputs[-1]
        if tokens.dim() != 3:
            raise ValueError(
                f'WideLast needs tokens [B, L, C], not {tuple(tokens.shape)}: set the '
                "backbone's out_type='raw'."
            )
        (x,) = self.lift(tokens)
        # A map of one row: attention over all tokens.
        x = x + self.attn(self.norm1(x).unsqueeze(1)).squeeze(1)
        x = x + self.mlp(self.norm2(x))
        x = self.norm(x)
        return (x[:, 0] if self.prefix_tokens else x.mean(1),)
