from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor


def blurred(images: Tensor, sigma: float) -> Tensor:
    """``images`` ``[B, C, H, W]`` under a Gaussian; edges are repeated.

    Args:
        images (Tensor): Anything of that shape, gradients among them.
        sigma (float): Standard deviation in pixels; below 0.3 nothing happens.
    """
    if sigma < 0.3:
        return images
    radius = ceil(3 * sigma)
    place = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = (-(place**2) / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    rows = images.flatten(0, 1)[:, None]
    rows = F.conv2d(F.pad(rows, (radius, radius, 0, 0), mode='replicate'), kernel.view(1, 1, 1, -1))
    rows = F.conv2d(F.pad(rows, (0, 0, radius, radius), mode='replicate'), kernel.view(1, 1, -1, 1))
    return rows.view_as(images)
