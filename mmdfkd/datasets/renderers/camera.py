from math import exp

import cv2
import numpy as np

from .fields import log_uniform
from .palette import LUMINANCE


def camera(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Blur, tone curve and noise; consumes ``canvas`` and returns uint8 ``[3, h, w]``."""
    _, h, w = canvas.shape
    if rng.random() < 0.35:
        sigma = log_uniform(rng, 0.3, 0.3 + 0.012 * min(h, w))
        for plane in canvas:
            cv2.GaussianBlur(plane, (0, 0), sigma, dst=plane)
    if rng.random() < 0.1:
        canvas[:] = np.tensordot(LUMINANCE, canvas, 1)
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
