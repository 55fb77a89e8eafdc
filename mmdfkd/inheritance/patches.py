"""Another patch size: the embedding of patches and the grid of tokens, resampled."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_matrix(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bilinear resizing of flattened images, antialiased where it makes them smaller.

    Args:
        old (tuple[int, int]): Height and width before.
        new (tuple[int, int]): After.

    Returns:
        Tensor: ``[new pixels, old pixels]``, float64.
    """
    pixels = old[0] * old[1]
    basis = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *old)
    resized = F.interpolate(basis, new, mode='bilinear', antialias=True, align_corners=False)
    return resized.flatten(1).t()


def resize_patch_embedding(weight: Tensor, kernel: tuple[int, int]) -> Tensor:
    """A patch embedding for patches of another size, by the pseudo-inverse of resizing.

    ``w' = (B^T)^+ w`` with ``B`` the matrix that resizes a patch ``x``: ``<B x, w'> = <x, w>`` for
    every ``x`` where patches grow, and as nearly as possible for white ``x`` where they shrink
    (FlexiViT, Beyer et al., CVPR 2023, Eq. 4).

    Args:
        weight (Tensor): ``[D, C, h, w]``.
        kernel (tuple[int, int]): Height and width of the new patches.

    Returns:
        Tensor: ``[D, C, *kernel]``, float64.
    """
    old = tuple(weight.shape[-2:])
    weight = weight.double()
    if old == tuple(kernel):
        return weight
    solve = torch.linalg.pinv(resize_matrix(old, kernel).t()).to(weight.device)
    return (weight.flatten(2) @ solve.t()).unflatten(-1, tuple(kernel))


def resize_tokens(
    tokens: Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int], mode: str = 'bilinear'
) -> Tensor:
    """Tokens of one grid at the places of another; prefix tokens stay.

    Args:
        tokens (Tensor): ``[B, prefix + h w, D]``.
        prefix (int): Tokens before those of the patches.
        old (tuple[int, int]): Their grid.
        new (tuple[int, int]): The wanted grid.
        mode (str): ``'bilinear'`` or ``'bicubic'``. Defaults to ``'bilinear'``.

    Returns:
        Tensor: ``[B, prefix + h' w', D]``.
    """
    if tuple(old) == tuple(new):
        return tokens
    maps = tokens[:, prefix:].transpose(1, 2).unflatten(-1, tuple(old))
    maps = F.interpolate(maps, tuple(new), mode=mode, antialias=True, align_corners=False)
    return torch.cat([tokens[:, :prefix], maps.flatten(2).transpose(1, 2)], 1)


def whole_patches(images: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Images ``[B, C, H, W]`` padded with zeros, right and below, to whole patches."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % kernel[1], 0, -height % kernel[0]))
