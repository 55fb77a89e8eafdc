from math import pi

import cv2
import numpy as np

from mmdfkd.registry import TASK_UTILS

from .base import DrawnRenderer
from .camera import camera
from .fields import any_field, log_uniform, slope, spectral, spread
from .figures import any_figure, place, rasterise
from .palette import any_colour, near


@TASK_UTILS.register_module()
class ProceduralRenderer(DrawnRenderer):
    """Layered scenes of figures on textured grounds, made of nothing but random numbers.

    A ground (gradient, spectral noise, stripes, checks, facets, grain), then figures over each
    other (solids, rings, strokes, loops, knots, hatchings, swarms, blobs) with flat, graded or
    textured paint, then the camera (blur, tone, noise). All sizes are relative to the image, so
    that it suits any resolution and any teacher.

    Args:
        figures (tuple[int, int]): Least and most figures an image; small numbers are more frequent.
        extent (tuple[float, float]): Range of a figure's longest side, relative to the image's
            shorter side, but at least 4 px; log-uniform.
        plain (float): Share of images with a flat or almost flat ground.
    """

    purpose = 'procedural'

    def __init__(
        self,
        figures: tuple[int, int] = (2, 16),
        extent: tuple[float, float] = (0.05, 1.2),
        plain: float = 0.2,
    ) -> None:
        if not 0 <= figures[0] <= figures[1]:
            raise ValueError(f'ProceduralRenderer: figures must be (least, most), not {figures}.')
        if not 0 < extent[0] <= extent[1]:
            raise ValueError(
                f'ProceduralRenderer: extent must be (least, most), above 0, not {extent}.'
            )
        self.figures = figures
        self.extent = extent
        self.plain = plain

    def _draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        canvas = self._ground(rng, *size)
        low, high = self.figures
        # Log-uniform over the counts: an image of one figure is as likely as one of many.
        for _ in range(int(log_uniform(rng, low + 1, high + 2)) - 1):
            self._figure(rng, canvas)
        return camera(rng, canvas)

    def _ground(self, rng: np.random.Generator, h: int, w: int) -> np.ndarray:
        """A float32 canvas ``[3, h, w]``, about [0, 1]."""
        side = float(min(h, w))
        first = any_colour(rng)
        canvas = np.empty((3, h, w), np.float32)
        if rng.random() < self.plain:
            canvas[:] = first[:, None, None]
            amount = rng.uniform(0, 0.12)
        else:
            amount = rng.uniform(0.1, 1.0)
            if rng.random() < 0.2:
                # Colours of their own in every place: three fields, mixed so that they are partly
                # alike.
                mix = np.eye(3, dtype=np.float32) + rng.uniform(0, 2)
                exponent = rng.uniform(0.5, 1.8)
                fields = (
                    np.stack([spread(spectral(rng, h, w, side, exponent)) for _ in range(3)]) - 0.5
                )
                canvas[:] = np.tensordot(mix / mix.sum(1, keepdims=True), fields, 1)
                canvas *= np.float32(2 * amount)
                canvas += first[:, None, None]
                amount = rng.uniform(0, 0.15)
            else:
                _between(canvas, any_field(rng, h, w, side), first, near(rng, first, amount))
                amount = rng.uniform(0, 0.4) if rng.random() < 0.5 else 0.0
        if amount > 0.02:
            tint = rng.normal(0, 1, 3).astype(np.float32) * 0.3 + 1
            canvas += (any_field(rng, h, w, side) - 0.5) * (tint * np.float32(amount))[
                :, None, None
            ]
        return canvas

    def _figure(self, rng: np.random.Generator, canvas: np.ndarray) -> None:
        """Paint one figure over ``canvas`` in place."""
        _, h, w = canvas.shape
        side = float(min(h, w))
        extent = max(4.0, side * log_uniform(rng, *self.extent))
        centre = (rng.uniform(0, w), rng.uniform(0, h))
        shade = extent * rng.uniform(0.01, 0.05) if rng.random() < 0.12 else 0.0
        soft = extent * rng.uniform(0.005, 0.05) if rng.random() < 0.15 else 0.0
        if rng.random() < 0.05:
            layer = _blob(rng, h, w, centre, extent, side)
        else:
            aspect = 1.0 if rng.random() < 0.5 else log_uniform(rng, 0.4, 1.0)
            paths = place(any_figure(rng), centre, extent, rng.uniform(0, 2 * pi), aspect)
            layer = rasterise(paths, h, w, room=3 * max(shade, soft))
        if layer is None:
            return
        mask, y, x = layer
        if shade:
            _shade(rng, canvas, mask, y, x, extent, max(0.5, shade))
        alpha = mask.astype(np.float32)
        if soft:
            alpha = cv2.GaussianBlur(alpha, (0, 0), max(0.4, soft))
        opacity = 1.0 if rng.random() < 0.65 else rng.uniform(0.25, 1.0)
        alpha *= np.float32(opacity / 255)
        ground = canvas[:, y : y + mask.shape[0], x : x + mask.shape[1]]
        # A few of the pixels below are enough to choose a contrast.
        every = max(1, min(mask.shape) // 5)
        under = ground[:, ::every, ::every].reshape(3, -1).mean(1)
        paint = self._paint(rng, under, mask.shape, side)
        ground += alpha * (paint - ground)

    def _paint(
        self, rng: np.random.Generator, under: np.ndarray, shape: tuple[int, int], side: float
    ) -> np.ndarray:
        """What a figure is filled with: ``[3, 1, 1]`` flat or ``[3, h, w]``."""
        colour = any_colour(rng) if rng.random() < 0.3 else near(rng, under, rng.uniform(0.15, 1.0))
        style = rng.random()
        if style < 0.55:
            return colour[:, None, None]
        field = (slope if style < 0.7 else any_field)(rng, *shape, side)
        paint = np.empty((3, *shape), np.float32)
        return _between(paint, field, colour, near(rng, colour, rng.uniform(0.1, 0.8)))


def _between(
    out: np.ndarray, field: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Fill ``out`` ``[3, h, w]``: ``first`` where ``field`` ``[h, w]`` is 0, ``second`` where 1."""
    np.multiply(field, (second - first)[:, None, None], out=out)
    out += first[:, None, None]
    return out


def _blob(
    rng: np.random.Generator,
    h: int,
    w: int,
    centre: tuple[float, float],
    extent: float,
    side: float,
) -> tuple[np.ndarray, int, int] | None:
    """Islands of thresholded noise within a round window; as :func:`rasterise` returns them."""
    y0, y1 = max(0, int(centre[1] - extent / 2)), min(h, int(centre[1] + extent / 2) + 2)
    x0, x1 = max(0, int(centre[0] - extent / 2)), min(w, int(centre[0] + extent / 2) + 2)
    if y1 - y0 < 3 or x1 - x0 < 3:
        return None
    field = spread(spectral(rng, y1 - y0, x1 - x0, side, rng.uniform(0.9, 1.8)))
    y = (np.arange(y0, y1, dtype=np.float32) - np.float32(centre[1])) * np.float32(2 / extent)
    x = (np.arange(x0, x1, dtype=np.float32) - np.float32(centre[0])) * np.float32(2 / extent)
    field -= (y * y)[:, None] + x * x
    field += np.float32(rng.uniform(0, 0.3))
    return (
        np.clip(field * np.float32(255 * log_uniform(rng, 4, 12)), 0, 255).astype(np.uint8),
        y0,
        x0,
    )


def _shade(
    rng: np.random.Generator,
    canvas: np.ndarray,
    mask: np.ndarray,
    y: int,
    x: int,
    extent: float,
    sigma: float,
) -> None:
    """Darken ``canvas`` in place under a figure, a little off to one side and blurred."""
    soft = cv2.GaussianBlur(mask, (0, 0), sigma)
    dy, dx = (round(v) for v in rng.uniform(-0.08, 0.08, 2) * extent)
    h, w = canvas.shape[1:]
    top, left = max(0, y + dy), max(0, x + dx)
    bottom, right = min(h, y + dy + mask.shape[0]), min(w, x + dx + mask.shape[1])
    if bottom > top and right > left:
        part = soft[top - y - dy : bottom - y - dy, left - x - dx : right - x - dx]
        canvas[:, top:bottom, left:right] *= 1 - part * np.float32(rng.uniform(0.2, 0.7) / 255)
