from collections.abc import Sequence
from math import pi

import cv2
import numpy as np

from mmdfkd.registry import TASK_UTILS

from .base import DrawnRenderer
from .camera import camera
from .fields import log_uniform
from .palette import any_colour, painted, palette, stretched

_BURN_IN = 16


@TASK_UTILS.register_module()
class FractalRenderer(DrawnRenderer):
    """Fractals: attractors of random affine maps, Julia sets and ridged noise.

    Args:
        kinds (Sequence[str]): Which of ``'ifs'`` (iterated function systems, as in Kataoka et al.,
            ACCV 2020), ``'julia'`` and ``'ridges'``; each image is one of them.

    Raises:
        ValueError: If there is no kind, or an unknown one.
    """

    purpose = 'fractals'

    def __init__(self, kinds: Sequence[str] = ('ifs', 'julia', 'ridges')) -> None:
        if not kinds or not set(kinds) <= set(_KINDS):
            raise ValueError(
                f'FractalRenderer: kinds must be some of {tuple(_KINDS)}, got {tuple(kinds)}.'
            )
        self.kinds = tuple(kinds)

    def _draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        canvas = _KINDS[kind](rng, *size)
        return camera(rng, np.ascontiguousarray(canvas, np.float32))


def _attractors(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """One to three attractors over a flat ground or over noise, ``[3, h, w]``."""
    if rng.random() < 0.5:
        canvas = np.empty((3, h, w), np.float32)
        canvas[:] = any_colour(rng)[:, None, None]
    else:
        canvas = _ridges(rng, h, w) * np.float32(rng.uniform(0.2, 0.8))
    for _ in range(int(rng.choice((1, 1, 2, 3)))):
        density = attractor(rng, h, w)
        paint = painted(density, palette(rng))
        cover = np.clip(density * log_uniform(rng, 1.5, 8.0), 0, 1)
        canvas += cover * (paint - canvas)
    return canvas


def attractor(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Where the chaos game of a random iterated function system goes, ``[h, w]`` in [0, 1].

    Two to six affine maps, each a turn, a stretch by its singular values (all below 1: every map
    contracts), another turn and a shift. Many points walk at once.
    """
    n = int(rng.integers(2, 7))
    first, second = rng.uniform(0, 2 * pi, (2, n))
    major = rng.uniform(0.4, 0.95, n)
    minor = major * rng.uniform(0.1, 1.0, n) * rng.choice((-1.0, 1.0), n)
    c1, s1, c2, s2 = np.cos(first), np.sin(first), np.cos(second), np.sin(second)
    # R(first) diag(major, minor) R(second)
    a, b = major * c1 * c2 - minor * s1 * s2, -major * c1 * s2 - minor * s1 * c2
    c, d = major * s1 * c2 + minor * c1 * s2, -major * s1 * s2 + minor * c1 * c2
    e, f = rng.uniform(-1, 1, (2, n))
    a, b, c, d, e, f = (part.astype(np.float32) for part in (a, b, c, d, e, f))
    share = np.abs(major * minor) + 0.03
    cumulative = np.cumsum(share / share.sum())[:-1]

    points = int(np.clip(0.8 * h * w, 12_000, 240_000))
    walkers = 1024 if points < 60_000 else 4096
    steps = points // walkers
    x, y = rng.uniform(-1, 1, (2, walkers)).astype(np.float32)
    track = np.empty((2, steps, walkers), np.float32)
    for step in range(-_BURN_IN, steps):
        k = np.searchsorted(cumulative, rng.random(walkers, dtype=np.float32), 'right')
        x, y = a[k] * x + b[k] * y + e[k], c[k] * x + d[k] * y + f[k]
        if step >= 0:
            track[0, step], track[1, step] = x, y
    track = track.reshape(2, -1)
    # Into the image by mean and deviation: a few far points do not shrink the rest.
    track -= track.mean(1, keepdims=True)
    extent = max(float(track.std(1).max()), 1e-6)
    scale = min(h, w) * log_uniform(rng, 0.12, 0.5) / extent
    column = (track[0] * scale + w * rng.uniform(0.25, 0.75)).astype(np.int64)
    row = (track[1] * scale + h * rng.uniform(0.25, 0.75)).astype(np.int64)
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    counts = np.bincount((row * w + column)[inside], minlength=h * w).reshape(h, w)
    density = np.log1p(counts.astype(np.float32))
    return density / max(float(density.max()), 1e-6)


def _julia(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A window on a Julia set ``z -> z ** 2 + c``, ``[3, h, w]``."""
    # Near the edge of the main cardioid of the Mandelbrot set, where the sets are intricate.
    turn = rng.uniform(0, 2 * pi)
    c = (np.exp(1j * turn) / 2 - np.exp(2j * turn) / 4) * rng.uniform(0.97, 1.12)
    scale = log_uniform(rng, 0.25, 3.0) / min(h, w)
    angle = rng.uniform(0, 2 * pi)
    right, down = scale * np.cos(angle), scale * np.sin(angle)
    centre = rng.uniform(-0.7, 0.7, 2)
    x = np.arange(w, dtype=np.float32) - np.float32(w / 2)
    y = (np.arange(h, dtype=np.float32) - np.float32(h / 2))[:, None]
    re = x * np.float32(right) - y * np.float32(down) + np.float32(centre[0])
    im = x * np.float32(down) + y * np.float32(right) + np.float32(centre[1])
    trap = rng.uniform(-0.8, 0.8, 2).astype(np.float32)
    real, imaginary = np.float32(c.real), np.float32(c.imag)
    near = np.full((h, w), np.inf, np.float32)
    escape = np.zeros((h, w), np.float32)
    with np.errstate(all='ignore'):
        # What has escaped overflows, and then is neither near nor below anything.
        for _ in range(int(rng.integers(10, 29))):
            square, other = re * re, im * im
            escape += square + other < 16
            im = 2 * re * im + imaginary
            re = square - other + real
            np.fmin(near, (re - trap[0]) ** 2 + (im - trap[1]) ** 2, out=near)
    field = np.sqrt(np.minimum(near, 4))
    share = rng.random()
    field = share * stretched(field) + (1 - share) * stretched(escape)
    return painted(field ** np.float32(log_uniform(rng, 0.5, 2)), palette(rng))


def _ridges(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Ridged noise (octaves of ``1 - |2 n - 1|``), smooth or in contours, ``[3, h, w]``."""
    field = np.zeros((h, w), np.float32)
    cells = log_uniform(rng, 1.5, 8.0)
    gain, fall = 1.0, rng.uniform(0.4, 0.75)
    side = min(h, w)
    ridged = rng.random() < 0.7
    while cells < side and gain > 0.02:
        shape = (max(2, round(cells * h / side)) + 1, max(2, round(cells * w / side)) + 1)
        noise = cv2.resize(
            rng.random(shape, dtype=np.float32), (w, h), interpolation=cv2.INTER_CUBIC
        )
        field += np.float32(gain) * ((1 - np.abs(2 * noise - 1)) ** 2 if ridged else noise)
        cells, gain = cells * rng.uniform(1.8, 2.2), gain * fall
    field = stretched(field)
    if rng.random() < 0.25:
        field = field * np.float32(rng.uniform(2, 8)) % 1
    return painted(field, palette(rng))


_KINDS = dict(ifs=_attractors, julia=_julia, ridges=_ridges)
