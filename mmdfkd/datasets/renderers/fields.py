"""Scalar fields ``[h, w]`` in [0, 1]: what grounds and textured fills are made of.

Every function takes a random stream, the height and width of the field and ``side``, the side of
the whole image in pixels, to which the scales are relative.
"""

from collections.abc import Callable
from math import cos, pi, sin

import cv2
import numpy as np

Field = Callable[[np.random.Generator, int, int, float], np.ndarray]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high] whose logarithm is uniform."""
    return low * (high / low) ** rng.random()


def spread(field: np.ndarray) -> np.ndarray:
    """Stretch to [0, 1] by mean and deviation: an outlier does not flatten the rest."""
    mean, std = cv2.meanStdDev(field)
    gain = 0.25 / max(float(std[0, 0]), 1e-6)
    return np.clip((field - float(mean[0, 0])) * gain + 0.5, 0, 1)


def ramp(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Pixel distance along a random direction, with a random origin inside the field."""
    angle = rng.uniform(0, 2 * pi)
    x = (np.arange(w, dtype=np.float32) - rng.uniform(0, w)) * np.float32(cos(angle))
    y = (np.arange(h, dtype=np.float32) - rng.uniform(0, h)) * np.float32(sin(angle))
    return y[:, None] + x[None, :]


def spectral(
    rng: np.random.Generator, h: int, w: int, side: float, exponent: float | None = None
) -> np.ndarray:
    """Noise with a power spectrum of about 1 / f^(2 exponent), unnormalised, possibly stretched.

    Built coarse to fine: each octave is enlarged twofold and a fresh one is added, so that the cost
    is that of the finest octave and a third.
    """
    exponent = rng.uniform(0.4, 1.8) if exponent is None else exponent
    stretch = log_uniform(rng, 1, 6) if rng.random() < 0.3 else 1.0
    tall = rng.random() < 0.5
    top_h, top_w = (h, max(2, int(w / stretch))) if tall else (max(2, int(h / stretch)), w)
    # The finest octave may be coarser than a pixel: smooth clouds as well as grain.
    level = rng.integers(0, 3) if rng.random() < 0.5 else 0
    sizes = [(max(2, top_h >> level), max(2, top_w >> level))]
    while max(sizes[-1]) > 3:
        sizes.append((max(2, (sizes[-1][0] + 1) // 2), max(2, (sizes[-1][1] + 1) // 2)))
    field = rng.random(sizes[-1], dtype=np.float32)
    gain = 1.0
    for height, width in sizes[-2::-1]:
        gain *= 2.0**-exponent
        field = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
        field += rng.random((height, width), dtype=np.float32) * np.float32(gain)
    if field.shape != (h, w):
        field = cv2.resize(field, (w, h), interpolation=cv2.INTER_CUBIC)
    return field


def clouds(rng: np.random.Generator, h: int, w: int, side: float) -> np.ndarray:
    """Spectral noise, smooth to grainy, now and then with a hard threshold."""
    field = spread(spectral(rng, h, w, side))
    if rng.random() < 0.2:
        field = np.clip((field - rng.uniform(0.35, 0.65)) * log_uniform(rng, 3, 20) + 0.5, 0, 1)
    return field


def slope(rng: np.random.Generator, h: int, w: int, side: float) -> np.ndarray:
    """A linear or radial gradient."""
    if rng.random() < 0.5:
        a, b = ramp(rng, h, w), ramp(rng, h, w)
        field = np.sqrt(a * a + b * b)
    else:
        field = ramp(rng, h, w)
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)


def _shaped(rng: np.random.Generator, phase: np.ndarray) -> np.ndarray:
    """A periodic profile of ``phase``: from a sine to a square wave, of any duty."""
    sharpness = log_uniform(rng, 0.5, 8)
    return np.clip((np.sin(phase) + rng.uniform(-0.6, 0.6)) * sharpness + 0.5, 0, 1)


def waves(rng: np.random.Generator, h: int, w: int, side: float) -> np.ndarray:
    """Straight, bent or concentric stripes."""
    period = max(2.5, side * log_uniform(rng, 0.02, 0.5))
    if rng.random() < 0.25:
        a, b = ramp(rng, h, w), ramp(rng, h, w)
        distance = np.sqrt(a * a + b * b)
    else:
        distance = ramp(rng, h, w)
        if rng.random() < 0.4:
            bend = rng.uniform(0.2, 1.5) * period
            distance += np.sin(
                ramp(rng, h, w) * (2 * pi / (period * rng.uniform(2, 8)))
            ) * np.float32(bend)
    return _shaped(rng, distance * np.float32(2 * pi / period))


def lattice(rng: np.random.Generator, h: int, w: int, side: float) -> np.ndarray:
    """Two crossing waves: checks, dots or plaids."""
    period = max(3.0, side * log_uniform(rng, 0.03, 0.4))
    angle = rng.uniform(0, pi)
    skew = pi / 2 if rng.random() < 0.7 else rng.uniform(0.6, 2.5)
    x = np.arange(w, dtype=np.float32) * np.float32(2 * pi / period)
    y = np.arange(h, dtype=np.float32) * np.float32(2 * pi / period)
    x -= np.float32(rng.uniform(0, 2 * pi))
    a = np.sin(y[:, None] * np.float32(sin(angle)) + x * np.float32(cos(angle)))
    b = np.sin(y[:, None] * np.float32(sin(angle + skew)) + x * np.float32(cos(angle + skew)))
    mixed = a * b if rng.random() < 0.5 else np.maximum(a, b) - 0.3
    return np.clip(mixed * np.float32(log_uniform(rng, 0.5, 8)) + 0.5, 0, 1)


def facets(rng: np.random.Generator, h: int, w: int, side: float) -> np.ndarray:
    """Regions of even tone between a few straight edges."""
    field = np.zeros((h, w), np.float32)
    for _ in range(int(rng.integers(1, 5))):
        field += (ramp(rng, h, w) > 0) * np.float32(rng.uniform(-1, 1))
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)


def grain(rng: np.random.Generator, h: int, w: int, side: float) -> np.ndarray:
    """Independent pixels, slightly blurred, perhaps along one axis."""
    field = rng.random((h, w), dtype=np.float32)
    across, along = rng.uniform(0.3, 1.2), rng.uniform(0.3, 1.2)
    if rng.random() < 0.4:
        along = max(along, side * log_uniform(rng, 0.01, 0.05))
    if rng.random() < 0.5:
        across, along = along, across
    return spread(cv2.GaussianBlur(field, (0, 0), across, sigmaY=along))


#: The kinds and how often each is chosen.
KINDS: tuple[tuple[Field, float], ...] = (
    (clouds, 0.36),
    (slope, 0.16),
    (waves, 0.16),
    (lattice, 0.11),
    (facets, 0.1),
    (grain, 0.11),
)
_CUMULATIVE = np.cumsum([share for _, share in KINDS])


def weighted(rng: np.random.Generator, cumulative: np.ndarray) -> int:
    """An index, chosen by weights of which ``cumulative`` holds the running sum."""
    return min(
        int(np.searchsorted(cumulative, rng.random() * cumulative[-1], 'right')),
        len(cumulative) - 1,
    )


def any_field(rng: np.random.Generator, h: int, w: int, side: float) -> np.ndarray:
    """A field of a random kind."""
    return KINDS[weighted(rng, _CUMULATIVE)][0](rng, h, w, side)
