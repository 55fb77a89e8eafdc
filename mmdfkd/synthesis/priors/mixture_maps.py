"""Random places to look at."""

import numpy as np


def mixture_maps(
    rng: np.random.Generator, count: int, grid: tuple[int, int], components: int = 5
) -> np.ndarray:
    """Maps of a few Gaussian hills each, normalised to sum 1.

    Each has 1 to ``components`` hills of random place, height (1 to 2), direction and widths (.06
    to .3 of the side, evenly in the logarithm), all relative to the sides: on a finer grid it is
    the same map.

    Args:
        rng (np.random.Generator): Of the image; what it gives does not depend on the grid.
        count (int): Number of maps.
        grid (tuple[int, int]): Rows and columns.
        components (int): Most hills of a map.

    Returns:
        np.ndarray: ``[count, rows * columns]``, float64.
    """
    shape = (count, components)
    present = np.arange(components) < rng.integers(1, components + 1, (count, 1))
    centre_y, centre_x = rng.random((2, *shape))
    height = rng.uniform(1, 2, shape) * present
    turn = rng.uniform(0, np.pi, shape)
    wide, narrow = np.exp(rng.uniform(np.log(0.06), np.log(0.3), (2, *shape)))
    y, x = ((np.arange(n) + 0.5) / n for n in grid)
    off_y = y[:, None] - centre_y[..., None, None]
    off_x = x[None, :] - centre_x[..., None, None]
    cos, sin = np.cos(turn)[..., None, None], np.sin(turn)[..., None, None]
    along = (cos * off_x + sin * off_y) / wide[..., None, None]
    across = (cos * off_y - sin * off_x) / narrow[..., None, None]
    hills = height[..., None, None] * np.exp(-(along**2 + across**2) / 2)
    maps = hills.sum(1).reshape(count, -1)
    return maps / maps.sum(1, keepdims=True)
