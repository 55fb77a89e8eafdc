"""Colours, and from scalar fields to colours."""

import numpy as np

#: Weights of red, green and blue in luminance (ITU-R BT.709).
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


def any_colour(rng: np.random.Generator) -> np.ndarray:
    """A random RGB colour, from grey to saturated."""
    vivid = rng.random(3, dtype=np.float32)
    grey = np.float32(rng.random())
    return grey + (vivid - grey) * np.float32(rng.random())


def near(rng: np.random.Generator, colour: np.ndarray, distance: float) -> np.ndarray:
    """A colour ``distance`` away in luminance, towards the side with room, and somewhere in hue."""
    other = any_colour(rng)
    luminance = float(colour @ LUMINANCE)
    up = rng.random() < 1 - luminance
    wanted = luminance + distance * ((1 - luminance) if up else -luminance)
    return np.clip(other + np.float32(wanted - float(other @ LUMINANCE)), 0, 1)


def palette(rng: np.random.Generator, colours: tuple[int, int] = (2, 6)) -> np.ndarray:
    """A random ramp through a few random colours, now and then in steps.

    Args:
        rng (np.random.Generator): The only source of chance.
        colours (tuple[int, int]): Least and most colours of the ramp.

    Returns:
        np.ndarray: ``float32 [3, 256]`` in [0, 1].
    """
    count = int(rng.integers(colours[0], colours[1] + 1))
    stops = np.stack([any_colour(rng) for _ in range(count)])
    # Half of the ramps are even; in the others some colours have more room.
    even = rng.random() < 0.5
    place = np.linspace(0, 1, count) if even else np.sort(rng.random(count))
    level = np.linspace(0, 1, 256)
    if rng.random() < 0.2:
        steps = int(rng.integers(2, 9))
        level = np.floor(level * steps).clip(max=steps - 1) / max(steps - 1, 1)
    return np.stack([np.interp(level, place, stops[:, c]) for c in range(3)]).astype(np.float32)


def painted(field: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Colours of a field.

    Args:
        field (np.ndarray): ``[h, w]``, clipped to [0, 1].
        table (np.ndarray): From :func:`palette`, ``[3, 256]``.

    Returns:
        np.ndarray: A new ``float32 [3, h, w]``.
    """
    return table[:, np.clip(field * 255 + 0.5, 0, 255).astype(np.uint8)]


def stretched(field: np.ndarray) -> np.ndarray:
    """Shift and scale a field to exactly [0, 1]; zero where it is constant."""
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)
