"""Where a network looks, over the image."""

import cv2
import numpy as np

from .draw import fit


def attention_overlay(image: np.ndarray, attention: np.ndarray, side: int) -> np.ndarray:
    """An image with what is attended to in its light and the rest in the dark.

    Args:
        image (np.ndarray): RGB uint8 ``[H, W, 3]``; unchanged.
        attention (np.ndarray): ``[h, w]``, not negative; scaled by its largest value.
        side (int): About how long the longer side becomes, pixels.

    Returns:
        np.ndarray: RGB uint8: grey and dark where nothing is looked at, and red where most is.
    """
    large, _ = fit(image, side)
    size = large.shape[1], large.shape[0]
    heat = np.asarray(attention, np.float32) / max(float(np.max(attention)), 1e-12)
    heat = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR).clip(0, 1)[..., None]
    grey = large.astype(np.float32).mean(2, keepdims=True).repeat(3, 2)
    red = grey * 0.4 + np.array([255, 40, 20], np.float32) * 0.6
    return (grey * 0.6 * (1 - heat) + red * heat).round().astype(np.uint8)
