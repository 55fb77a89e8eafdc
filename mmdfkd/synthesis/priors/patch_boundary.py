from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext
from .parts import patch_size


@MODELS.register_module()
class PatchBoundaryPrior(Prior):
    """No seams between the patches of a transformer.

    The mean squared jump across the borders of its patches (GradViT, Hatamizadeh et al., CVPR 2022;
    there a sum, which grows with the resolution). It looks at what the network sees: where
    that is a shifted view, at the borders in the view.
    """

    name = 'patch_boundary'

    def unsuited(self, teacher: Adapter) -> str | None:
        """Where there are no patches side by side."""
        if patch_size(teacher.net) is None:
            return (
                'the teacher does not cut images into patches side by side; '
                'mmdfkd.TotalVariationPrior smooths everywhere'
            )
        return None

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``, of the squared pixel range."""
        return patch_boundary(ctx.images, patch_size(ctx.teacher.net))


def patch_boundary(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Mean squared jump across borders of patches: ``[B]``.

    Rows and columns count alike, each as the mean over its borders; zero where there are none.

    Args:
        images (Tensor): ``[B, C, H, W]``; the patches begin in the top left corner.
        patch (tuple[int, int]): Height and width of a patch in pixels.
    """
    images = at_least_float32(images)
    parts = []
    for dim, side in ((2, patch[0]), (3, patch[1])):
        before = images.narrow(dim, 0, images.shape[dim] - 1)
        jumps = images.narrow(dim, 1, images.shape[dim] - 1) - before
        # Between pixel p - 1 and pixel p is the jump p - 1.
        borders = jumps[:, :, side - 1 :: side] if dim == 2 else jumps[..., side - 1 :: side]
        if borders.numel():
            parts.append(borders.square().mean((1, 2, 3)))
    return sum(parts) / len(parts) if parts else images.sum((1, 2, 3)) * 0
