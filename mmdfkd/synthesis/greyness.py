from torch import Tensor

#: Most difference of an image's channels that is rounding, of the pixel range.
_ROUNDING = 1.5 / 255


def grey_images(images: Tensor) -> Tensor:
    """Which images have no colour: ``[B, 1, 1, 1]`` bool of ``[B, 3, H, W]`` in [0, 1]."""
    spread = images.amax(1, keepdim=True) - images.amin(1, keepdim=True)
    return spread.amax((2, 3), keepdim=True) <= _ROUNDING


def kept_grey(values: Tensor, grey: Tensor) -> Tensor:
    """Where ``grey``, the mean over channels in each of them; ``values`` elsewhere.

    Args:
        values (Tensor): ``[B, 3, H, W]``, such as a gradient.
        grey (Tensor): ``[B, 1, 1, 1]`` of :func:`grey_images`.
    """
    return values.where(~grey, values.mean(1, keepdim=True).expand_as(values))
