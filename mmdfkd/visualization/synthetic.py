"""Pictures of synthetic images: what the teacher sees in them, and where it looks."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmdfkd.adapters import Adapter, Targets
from mmdfkd.evaluation import seen_in
from mmdfkd.evaluation.image_quality import attention_taps, class_attention
from mmdfkd.synthesis import SynthesisContext, frozen

from .attention import attention_overlay
from .draw import tile
from .grids import panel


@torch.no_grad()
def attention_of(teacher: Adapter, images: Tensor) -> list[np.ndarray] | None:
    """The class token's attention in the teacher's last layer, the mean over heads.

    Args:
        teacher (Adapter): The teacher.
        images (Tensor): RGB, uint8, ``[N, 3, H, W]``.

    Returns:
        list[np.ndarray] | None: Of each image, over its patches ``[h, w]``; None where no attention
            over the whole image can be read.
    """
    taps = attention_taps(teacher)
    if not taps:
        return None
    device = next(teacher.net.parameters()).device
    maps = []
    with frozen(teacher.net):
        for image in images:
            pixels = image[None].to(device).float() / 255
            ctx = SynthesisContext(pixels, Targets(), teacher, taps=taps)
            attention, grid = class_attention(ctx)
            maps.append(attention[0].mean(0).reshape(grid).float().cpu().numpy())
    return maps


def synthetic_grid(
    teacher: Adapter,
    images: Tensor,
    names: Sequence[str],
    attention: bool = True,
    width: int = 1280,
) -> np.ndarray:
    """A grid of images with what the teacher sees in each and, beside it, where it looks.

    Args:
        teacher (Adapter): The teacher; it is left as it was.
        images (Tensor): RGB, uint8, ``[N, 3, H, W]``, at least one.
        names (Sequence[str]): Class names.
        attention (bool): Whether to draw the attention, where there is some.
        width (int): About how wide the grid becomes, pixels.
    """
    with frozen(teacher.net):
        seen = seen_in(teacher, images)
    maps = attention_of(teacher, images) if attention else None
    each = 1 if maps is None else 2
    columns = each * max(1, math.ceil(math.sqrt(len(images) / each)))
    side = min(384, width // columns)
    panels = []
    for index, (image, one) in enumerate(zip(images, seen, strict=True)):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        panels.append(panel(pixels, one, names, side))
        if maps is not None:
            overlay = attention_overlay(pixels, maps[index], side)
            # As high as its neighbour, which may have a caption.
            below = len(panels[-1]) - len(overlay)
            panels.append(np.pad(overlay, ((0, below), (0, 0), (0, 0)), constant_values=255))
    return tile(panels, columns)
