from math import exp, pi

import cv2
import numpy as np

from mmdfkd.registry import TASK_UTILS

from .fields import any_field, log_uniform, slope, spectral, spread
from .figures import any_figure, place, rasterise
from .stream import stream

#: Weights of red, green and blue in luminance (ITU-R BT.709).
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


@TASK_UTILS.register_module()
class ProceduralRenderer:
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

    def __call__(self, seed: int, g: int, size: tuple[int, int]) -> np.ndarray:
        """Render sample ``g``.

        Args:
            seed (int): Seed of the run, not negative.
            g (int): Global index of the sample, not negative.
            size (tuple[int, int]): Height and width in pixels.

        Returns:
            np.ndarray: RGB, uint8, ``[3, H, W]``.
        """
        rng = stream('procedural', seed, g)
        canvas = self._ground(rng, *size)
        low, high = self.figures
        # Log-uniform over the counts: an image of one figure is as likely as one of many.
        for _ in range(int(log_uniform(rng, low + 1, high + 2)) - 1):
            self._figure(rng, canvas)
        return _camera(rng, canvas)

    def _ground(self, rng: np.random.Generator, h: int, w: int) -> np.ndarray:
        """A float32 canvas ``[3, h, w]``, about [0, 1]."""
        side = float(min(h, w))
        first = _colour(rng)
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
                _between(canvas, any_field(rng, h, w, side), first, _near(rng, first, amount))
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
        colour = _colour(rng) if rng.random() < 0.3 else _near(rng, under, rng.uniform(0.15, 1.0))
        style = rng.random()
        if style < 0.55:
            return colour[:, None, None]
        field = (slope if style < 0.7 else any_field)(rng, *shape, side)
        paint = np.empty((3, *shape), np.float32)
        return _between(paint, field, colour, _near(rng, colour, rng.uniform(0.1, 0.8)))


def _between(
    out: np.ndarray, field: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Fill ``out`` ``[3, h, w]``: ``first`` where ``field`` ``[h, w]`` is 0, ``second`` where 1."""
    np.multiply(field, (second - first)[:, None, None], out=out)
    out += first[:, None, None]
    return out


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A random RGB colour, from grey to saturated."""
    vivid = rng.random(3, dtype=np.float32)
    grey = np.float32(rng.random())
    return grey + (vivid - grey) * np.float32(rng.random())


def _near(rng: np.random.Generator, colour: np.ndarray, distance: float) -> np.ndarray:
    """A colour ``distance`` away in luminance, towards the side with room, and somewhere in hue."""
    other = _colour(rng)
    luminance = float(colour @ _LUMINANCE)
    up = rng.random() < 1 - luminance
    wanted = luminance + distance * ((1 - luminance) if up else -luminance)
    return np.clip(other + np.float32(wanted - float(other @ _LUMINANCE)), 0, 1)


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


def _camera(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Blur, tone curve and noise; consumes ``canvas`` and returns uint8 ``[3, h, w]``."""
    _, h, w = canvas.shape
    if rng.random() < 0.35:
        sigma = log_uniform(rng, 0.3, 0.3 + 0.012 * min(h, w))
        for plane in canvas:
            cv2.GaussianBlur(plane, (0, 0), sigma, dst=plane)
    if rng.random() < 0.1:
        canvas[:] = np.tensordot(_LUMINANCE, canvas, 1)
    levels = np.clip(canvas, 0, 1, out=canvas)
    levels *= 255
    levels += 0.5
    image = levels.astype(np.uint8)
    if rng.random() < 0.6:
        image = _tone(rng, image)
    if rng.random() < 0.5:
        sigma = 255 * log_uniform(rng, 0.004, 0.08)
        coloured = rng.random() < 0.7
        noise = rng.standard_normal((3 if coloured else 1, h, w), dtype=np.float32) * np.float32(
            sigma
        )
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def _tone(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Gamma, contrast and a white balance, as one table for each channel."""
    grey = np.arange(256, dtype=np.float32) / 255
    curve = grey ** np.float32(exp(rng.normal(0, 0.35)))
    gain, middle = exp(rng.normal(-0.1, 0.25)), rng.uniform(0.3, 0.7)
    curve = (curve - middle) * gain + middle + rng.normal(0, 0.06)
    balance = np.exp(rng.normal(0, 0.08, (3, 1)))
    table = np.clip(curve * balance * 255, 0, 255).astype(np.uint8)
    return np.stack([cv2.LUT(image[c], table[c]) for c in range(3)])
