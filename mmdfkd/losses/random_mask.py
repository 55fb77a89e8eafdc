"""Which places a generation loss hides."""

import torch
from torch import Tensor


def random_mask(
    batch: int,
    places: int,
    ratio: float,
    exact: bool = True,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Hide a share of the places of each image.

    Args:
        batch (int): Images.
        places (int): Tokens or pixels of each.
        ratio (float): Share to hide, in (0, 1).
        exact (bool): Hide the same number in every image, ``places - int((1 - ratio) * places)`` as
            ViTKD does; otherwise each place by its own chance, as MGD does. Defaults to True.
        device (torch.device | str, optional): Of the mask.
        generator (torch.Generator, optional): In place of the global one.

    Returns:
        Tensor: ``[batch, places]``, True where hidden.

    Raises:
        ValueError: On a ratio outside (0, 1).
    """
    if not 0 < ratio < 1:
        raise ValueError(f'The share of hidden places must lie in (0, 1), not {ratio}.')
    noise = torch.rand(batch, places, device=device, generator=generator)
    if not exact:
        return noise < ratio
    return noise.argsort(1).argsort(1) >= int((1 - ratio) * places)
