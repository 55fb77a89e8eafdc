import torch.nn.functional as F
from torch import Tensor, nn

from mmdfkd.registry import MODELS


@MODELS.register_module()
class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of ``[B, C, H, W]`` maps, as in ViTDet's pyramid and heads.

    ``_abbr_`` is the name under which mmcv's ``ConvModule`` stores a norm. mmdet's published ViTDet
    checkpoints say ``norm_layer``; any other name would lose those weights.

    Args:
        num_channels (int): Channels ``C``.
        eps (float): Added to the variance. Defaults to 1e-6.
    """

    _abbr_ = 'norm_layer'

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[B, C, H, W]`` over ``C`` at each position."""
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2).contiguous()
