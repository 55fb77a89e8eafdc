from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdfkd.registry import MODELS

from ..layers import LayerNorm2d


def _rescale(channels: int, factor: float, eps: float) -> tuple[nn.Sequential, int]:
    """Layers that rescale a map by ``factor`` and the channels they leave."""
    if factor == 4:
        layers = [
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
            LayerNorm2d(channels // 2, eps=eps),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 2, channels // 4, 2, stride=2),
        ]
        return nn.Sequential(*layers), channels // 4
    if factor == 2:
        return nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        ), channels // 2
    if factor == 1:
        return nn.Sequential(nn.Identity()), channels
    if factor == 0.5:
        return nn.Sequential(nn.MaxPool2d(kernel_size=2, stride=2)), channels
    raise ValueError(f'SimpleFPN rescales by 4, 2, 1 or 0.5, not by {factor}.')


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """The pyramid of ViTDet: every level from the one last map (Li et al., ECCV 2022, section 3).

    Layer names are those of mmdet's published checkpoints (``fpn1`` ... ``lateral_convs``,
    ``fpn_convs``).

    Args:
        in_channels (int): Channels of the backbone's map.
        out_channels (int): Channels of every level. Defaults to 256.
        scale_factors (Sequence[float]): Size of each level relative to the map: 4, 2, 1 or 0.5.
            Defaults to (4, 2, 1, 0.5).
        num_outs (int): Number of levels; those beyond the scale factors are subsampled from the
            last with stride 2. Defaults to 5.
        norm_eps (float): Epsilon of the norms. Defaults to 1e-5, that of mmdet's published
            detectors (mmcv gives it to every norm of neck and heads); detectron2's have 1e-6.
        lateral_channels (int, optional): Channels between a level's two convolutions. Defaults to
            ``out_channels``, as ViTDet has it; fewer where the output has to be wide, as a DETR's.
        init_cfg (dict, optional): mmengine's initialisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scale_factors: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        norm_eps: float = 1e-5,
        lateral_channels: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if num_outs < len(scale_factors):
            raise ValueError(
                f'num_outs={num_outs} is less than the {len(scale_factors)} scale factors.'
            )
        self.scale_factors = tuple(scale_factors)
        self.num_outs = num_outs
        self.lateral_convs = nn.ModuleList()
        self.fpn_convs = nn.ModuleList()
        norm_cfg = {'type': LayerNorm2d, 'eps': norm_eps}
        lateral_channels = lateral_channels or out_channels
        for i, factor in enumerate(self.scale_factors, start=1):
            layers, channels = _rescale(in_channels, factor, norm_eps)
            self.add_module(f'fpn{i}', layers)
            self.lateral_convs.append(
                ConvModule(
                    channels, lateral_channels, 1, norm_cfg=norm_cfg, act_cfg=None, bias=False
                )
            )
            self.fpn_convs.append(
                ConvModule(
                    lateral_channels,
                    out_channels,
                    3,
                    padding=1,
                    norm_cfg=norm_cfg,
                    act_cfg=None,
                    bias=False,
                )
            )

    def forward(self, x: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the pyramid from ``[B, C, H, W]``, or from the last of several maps.

        Returns:
            tuple[Tensor]: ``num_outs`` maps ``[B, out_channels, H * f, W * f]``.
        """
        if not isinstance(x, Tensor):
            x = x[-1]
        outs = []
        for i, (lateral, conv) in enumerate(
            zip(self.lateral_convs, self.fpn_convs, strict=True), start=1
        ):
            outs.append(conv(lateral(getattr(self, f'fpn{i}')(x))))
        for _ in range(self.num_outs - len(outs)):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
