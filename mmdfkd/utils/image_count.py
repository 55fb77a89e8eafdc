"""How many images go through a network at once."""

# The side of images of which as many as asked for fit.
_SIDE = 256


def images_at_once(most: int, image_size: tuple[int, int]) -> int:
    """Images of a forward that keeps no graph: fewer where they are larger, at least one.

    Args:
        most (int): Images of up to 256 x 256 px.
        image_size (tuple[int, int]): Height and width in pixels.
    """
    return min(most, max(1, most * _SIDE**2 // (image_size[0] * image_size[1])))
