"""Features of any kind as one list of tokens, patches last."""

import math

import torch
from mmengine.utils import is_seq_of
from torch import Tensor

Grid = tuple[int, int]


def read_tokens(
    feature,
    width: int,
    image_size: Grid,
    prefix_tokens: int,
    channels_last: bool | None,
    who: str,
    place: str,
) -> tuple[Tensor, Grid | None]:
    """Tokens ``[B, L, C]`` of a vector, of tokens, of a map or of a pair of tokens.

    Args:
        feature: ``[B, C]``, ``[B, L, C]``, ``[B, C, H, W]``, ``[B, H, W, C]``, or the class and
            distillation tokens ``[B, C]`` of a distilled DeiT in a tuple.
        width (int): ``C``.
        image_size (tuple[int, int]): Height and width of the images.
        prefix_tokens (int): How many of the tokens ``[B, L, C]`` precede the patches.
        channels_last (bool, optional): Whether maps are ``[B, H, W, C]``. None tells by ``width``.
        who (str): The head and whose feature it is, for messages: two words.
        place (str): Where the feature is from, for messages.

    Returns:
        tuple[Tensor, tuple[int, int] | None]: The tokens, and the patches' grid (None without).

    Raises:
        ValueError: If the feature is of no such kind, its patches form no grid of the image's
            proportions, or it cannot be told where its channels are.
    """
    head, network = who.split()
    if is_seq_of(feature, Tensor):
        # A distilled DeiT returns its class and its distillation token as a pair.
        return torch.stack(tuple(feature), 1), None
    if not isinstance(feature, Tensor) or feature.dim() not in (2, 3, 4):
        found = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
        raise ValueError(
            f"{head} compares vectors, tokens and maps, but the {network}'s {place} is {found}."
        )
    if feature.dim() == 2:
        return feature[:, None], None
    if feature.dim() == 4:
        if channels_last is None:
            first, last = feature.shape[1] == width, feature.shape[3] == width
            if first == last:
                raise ValueError(
                    f"{head} cannot tell where the {width} channels of {place}'s output "
                    f'{tuple(feature.shape)} are; set channels_last.'
                )
            channels_last = last
        if not channels_last:
            feature = feature.permute(0, 2, 3, 1)
        return feature.flatten(1, 2), tuple(feature.shape[1:3])
    patches = feature.shape[1] - prefix_tokens
    height, wide = image_size
    rows = round(math.sqrt(max(patches, 0) * height / wide))
    columns = patches // max(rows, 1)
    if patches < 1 or rows * columns != patches:
        raise ValueError(
            f"{head}: the {network}'s {place} has {feature.shape[1]} tokens; without "
            f'{prefix_tokens} prefix tokens they are no grid of the proportions of the '
            f'{height} x {wide} px image. Set prefix_tokens=(student, teacher).'
        )
    return feature, (rows, columns)


def split_tokens(tokens: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor | None]:
    """Prefix tokens ``[B, P, C]`` and patches as a map ``[B, C, H, W]`` (None without a grid)."""
    if grid is None:
        return tokens, None
    count = grid[0] * grid[1]
    prefix, patches = tokens[:, :-count], tokens[:, -count:]
    return prefix, patches.transpose(1, 2).unflatten(2, grid)
