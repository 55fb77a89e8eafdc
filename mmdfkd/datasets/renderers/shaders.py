from collections.abc import Sequence
from math import pi

import cv2
import numpy as np

from mmdfkd.registry import TASK_UTILS

from .base import DrawnRenderer
from .camera import camera
from .fields import any_field, log_uniform, ramp, spectral, spread
from .palette import painted, palette, stretched


@TASK_UTILS.register_module()
class ShaderRenderer(DrawnRenderer):
    """Textures as fragment shaders make them: every pixel a short formula of its place.

    Args:
        kinds (Sequence[str]): Which of ``'warp'`` (noise whose coordinates are moved by noise),
            ``'cells'`` (distances to the nearest of scattered points), ``'kaleidoscope'`` (a
            texture folded about a point) and ``'ripples'`` (circular waves that interfere); each
            image is one of them.

    Raises:
        ValueError: If there is no kind, or an unknown one.
    """

    purpose = 'shaders'

    def __init__(self, kinds: Sequence[str] = ('warp', 'cells', 'kaleidoscope', 'ripples')) -> None:
        if not kinds or not set(kinds) <= set(_KINDS):
            raise ValueError(
                f'ShaderRenderer: kinds must be some of {tuple(_KINDS)}, got {tuple(kinds)}.'
            )
        self.kinds = tuple(kinds)

    def _draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        canvas = painted(_KINDS[kind](rng, *size), palette(rng))
        if rng.random() < 0.3:
            # Lit from one side, as if the field were a height.
            canvas += np.float32(rng.uniform(0.1, 0.5)) * _light(rng, *size)
        return camera(rng, np.ascontiguousarray(canvas, np.float32))


def _light(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Slope of smooth noise along one direction, ``[h, w]``, about [-1, 1]."""
    height = spread(spectral(rng, h, w, float(min(h, w)), rng.uniform(0.9, 1.8)))
    angle = rng.uniform(0, 2 * pi)
    right = cv2.Sobel(height, cv2.CV_32F, 1, 0)
    down = cv2.Sobel(height, cv2.CV_32F, 0, 1)
    return 2 * spread(np.cos(angle) * right + np.sin(angle) * down) - 1


def _sampled(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A field at other places, in pixels; mirrored outside."""
    return cv2.remap(
        field,
        np.ascontiguousarray(x, np.float32),
        np.ascontiguousarray(y, np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )


def warp(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A field whose coordinates are moved by noise, once or twice, ``[h, w]`` in [0, 1]."""
    side = float(min(h, w))
    field = any_field(rng, h, w, side)
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    for _ in range(int(rng.integers(1, 3))):
        strength = np.float32(side * log_uniform(rng, 0.08, 0.6))
        move = [spread(spectral(rng, h, w, side, rng.uniform(0.9, 1.8))) - 0.5 for _ in range(2)]
        field = _sampled(field, x + strength * move[0], y + strength * move[1])
    return stretched(field)


def cells(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Worley noise: distances to the two nearest of jittered points, ``[h, w]`` in [0, 1]."""
    pitch = max(min(h, w) * log_uniform(rng, 0.05, 0.4), 3.0)
    rows, columns = int(h / pitch) + 4, int(w / pitch) + 4
    jitter = rng.uniform(0.3, 1.0)
    points = rng.random((rows, columns, 2), dtype=np.float32) * np.float32(jitter)
    tone = rng.random((rows, columns), dtype=np.float32)
    y = np.arange(h, dtype=np.float32) / np.float32(pitch) + 1
    x = np.arange(w, dtype=np.float32) / np.float32(pitch) + 1
    row, column = y.astype(np.int64), x.astype(np.int64)
    first = np.full((h, w), np.inf, np.float32)
    second, own = first.copy(), np.zeros((h, w), np.float32)
    block = rng.random() < 0.3
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            place = np.ix_(row + i, column + j)
            dy = (row + i).astype(np.float32)[:, None] + points[..., 0][place] - y[:, None]
            dx = (column + j).astype(np.float32) + points[..., 1][place] - x
            distance = np.abs(dx) + np.abs(dy) if block else np.sqrt(dx * dx + dy * dy)
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            own = np.where(nearer, tone[place], own)
            first = np.where(nearer, distance, first)
    kind = int(rng.integers(4))
    if kind == 0:
        return np.clip(first, 0, 1)
    if kind == 1:
        return np.clip((second - first) * np.float32(log_uniform(rng, 1, 6)), 0, 1)
    if kind == 2:
        return own
    return np.clip(own * (1 - first), 0, 1)


def kaleidoscope(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A texture seen through mirrors that meet in a point, ``[h, w]`` in [0, 1]."""
    side = float(min(h, w))
    field = any_field(rng, h, w, side)
    centre = rng.uniform(0.2, 0.8, 2) * (w, h)
    x = np.arange(w, dtype=np.float32) - np.float32(centre[0])
    y = (np.arange(h, dtype=np.float32) - np.float32(centre[1]))[:, None]
    radius = np.sqrt(x * x + y * y)
    sector = np.float32(2 * pi / int(rng.integers(2, 10)))
    twist = np.float32(rng.normal(0, 2.0) / side) if rng.random() < 0.4 else np.float32(0)
    angle = np.arctan2(y, x) + np.float32(rng.uniform(0, 2 * pi)) + radius * twist
    angle = np.abs(angle % sector - sector / 2)
    zoom = np.float32(log_uniform(rng, 0.5, 3.0))
    return stretched(_sampled(field, radius * zoom * np.cos(angle), radius * zoom * np.sin(angle)))


def ripples(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Circular and plane waves that interfere, ``[h, w]`` in [0, 1]."""
    side = float(min(h, w))
    field = np.zeros((h, w), np.float32)
    for _ in range(int(rng.integers(2, 6))):
        if rng.random() < 0.7:
            x = np.arange(w, dtype=np.float32) - np.float32(rng.uniform(-0.5, 1.5) * w)
            y = (np.arange(h, dtype=np.float32) - np.float32(rng.uniform(-0.5, 1.5) * h))[:, None]
            distance = np.sqrt(x * x + y * y)
        else:
            distance = ramp(rng, h, w)
        period = max(3.0, side * log_uniform(rng, 0.04, 0.8))
        field += np.sin(distance * np.float32(2 * pi / period))
    return stretched(field)


_KINDS = dict(warp=warp, cells=cells, kaleidoscope=kaleidoscope, ripples=ripples)
