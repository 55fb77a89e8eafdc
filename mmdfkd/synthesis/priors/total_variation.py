from torch import Tensor

from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext


@MODELS.register_module()
class TotalVariationPrior(Prior):
    """Neighbouring pixels are to be alike: fine noise that only a network can see costs.

    The mean absolute difference of neighbours, horizontally and vertically, times half the sum of
    the sides: the total variation per unit of the image's side. A contour counts the same at any
    resolution, and noise of single pixels counts more the finer it is. Published forms are norms of
    the whole batch, which grow with the root of its size.
    """

    name = 'total_variation'

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``, at least zero."""
        return total_variation(ctx.pixels)


def total_variation(images: Tensor) -> Tensor:
    """Total variation of each of ``images`` ``[B, C, H, W]``, per unit of the side: ``[B]``."""
    h, w = images.shape[-2:]
    rows = (images[..., 1:, :] - images[..., :-1, :]).abs().sum((-2, -1)) / w
    columns = (images[..., :, 1:] - images[..., :, :-1]).abs().sum((-2, -1)) / h
    return (rows + columns).mean(-1) / 2
