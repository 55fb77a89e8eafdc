from math import ceil, pi

import cv2
import numpy as np

from mmdfkd.registry import TASK_UTILS

from .base import DrawnRenderer
from .camera import camera
from .fields import any_field, log_uniform
from .palette import palette

#: More leaves than this are not seen: the small ones lie under the others.
_MOST = 4000
_SHAPES = ('round', 'box', 'polygon', 'star')


@TASK_UTILS.register_module()
class DeadLeavesRenderer(DrawnRenderer):
    """Dead leaves: opaque shapes that fall on each other until they cover the ground.

    With radii of density ``r ** -3`` the images are as scale-free as natural ones (Lee, Mumford and
    Huang, IJCV 2001). Each image has its own shape, colours and range of sizes; leaves are flat,
    shaded or textured.

    Args:
        radius (tuple[float, float]): Range of the radii, relative to the image's shorter side, but
            at least 1 px.
        exponent (float): Radii have the density ``r ** -exponent``.
        cover (float): Area of all leaves, in units of the image's: a share of about
            ``exp(-cover)`` stays uncovered.

    Raises:
        ValueError: If an argument makes no sense.
    """

    purpose = 'dead-leaves'

    def __init__(
        self, radius: tuple[float, float] = (0.02, 0.5), exponent: float = 3.0, cover: float = 4.0
    ) -> None:
        if not 0 < radius[0] < radius[1]:
            raise ValueError(
                f'DeadLeavesRenderer: radius must be (least, most), above 0, not {radius}.'
            )
        if exponent <= 1 or cover <= 0:
            raise ValueError(
                'DeadLeavesRenderer: exponent must be above 1 and cover above 0, got '
                f'{exponent} and {cover}.'
            )
        self.radius = radius
        self.exponent = exponent
        self.cover = cover

    def _draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        h, w = size
        # Edges are smoothed by drawing small images larger.
        fine = int(np.clip(128 // max(h, w), 1, 4))
        leaves, labels = self._fallen(rng, h * fine, w * fine)
        return camera(rng, _coloured(rng, leaves, labels, fine))

    def _fallen(self, rng: np.random.Generator, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
        """Leaves ``[n, 3]`` (x, y, radius), and which of them each pixel shows ``int32 [h, w]``.

        The first lies below all others and covers the ground.
        """
        side = float(min(h, w))
        least = max(self.radius[0] * side * log_uniform(rng, 0.7, 3.0), 1.0)
        most = max(self.radius[1] * side, 2 * least)
        power = 1 - self.exponent

        def radii(u: np.ndarray) -> np.ndarray:
            return (least**power + u * (most**power - least**power)) ** (1 / power)

        area = pi * float((radii((np.arange(512) + 0.5) / 512) ** 2).mean())
        count = min(ceil(self.cover * h * w / area), _MOST)
        leaves = np.empty((count + 1, 3), np.float32)
        leaves[0] = (w / 2, h / 2, max(h, w))
        leaves[1:, :2] = rng.random((count, 2)) * (w, h)
        leaves[1:, 2] = radii(rng.random(count))
        # Sixteenths of a pixel.
        dots = np.rint(_outlines(rng, leaves[1:]) * 16).astype(np.int32)
        labels = np.zeros((h, w), np.int32)
        for number, outline in enumerate(dots, 1):
            cv2.fillPoly(labels, [outline], number, cv2.LINE_8, 4)
        return leaves, labels


def _outlines(rng: np.random.Generator, leaves: np.ndarray) -> np.ndarray:
    """Outlines of leaves ``[n, 3]`` in pixels, ``[n, V, 2]``: of one kind, each turned its way."""
    n = len(leaves)
    kind = _SHAPES[int(rng.integers(len(_SHAPES)))]
    corners = {'round': 20, 'box': 4, 'polygon': int(rng.integers(3, 8)), 'star': 12}[kind]
    angle = (np.arange(corners) + 0.5) * (2 * pi / corners)
    reach = np.ones((n, corners), np.float32)
    if kind == 'polygon':
        angle = angle + rng.uniform(-0.5, 0.5, (n, corners)) * (2 * pi / corners)
    elif kind == 'star':
        reach[:, 1::2] = rng.uniform(0.4, 1.0, (n, 1))
    aspect = 1.0 if rng.random() < 0.4 else rng.uniform(0.3, 1.0, (n, 1))
    x, y = np.cos(angle) * reach, np.sin(angle) * reach * aspect
    turn = rng.uniform(0, 2 * pi, (n, 1)) * (rng.random() < 0.8)
    c, s = np.cos(turn), np.sin(turn)
    points = np.stack([x * c - y * s, x * s + y * c], -1)
    return leaves[:, None, :2] + points * leaves[:, None, 2:]


def _coloured(
    rng: np.random.Generator, leaves: np.ndarray, labels: np.ndarray, fine: int
) -> np.ndarray:
    """A canvas ``float32 [3, h, w]`` of labels ``[h * fine, w * fine]``."""
    n = len(leaves)
    h, w = labels.shape
    table = palette(rng, (3, 8))
    colours = table[:, rng.integers(0, 256, n)]
    if rng.random() < 0.5:
        colours = colours + rng.normal(0, 0.08, (3, n)).astype(np.float32)
    canvas = colours[:, labels]
    if rng.random() < 0.4:
        # Each leaf is lit from its own side.
        slope = (rng.uniform(-0.3, 0.3, (2, n)) / leaves[:, 2]).astype(np.float32)
        middle = (slope * leaves[:, :2].T).sum(0)
        x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)
        canvas += slope[0][labels] * x + slope[1][labels] * y[:, None] - middle[labels]
    if rng.random() < 0.4:
        rough = rng.uniform(0, 0.7, n).astype(np.float32) * (rng.random(n) < 0.6)
        canvas += rough[labels] * (any_field(rng, h, w, float(min(h, w))) - 0.5)
    if fine == 1:
        return np.ascontiguousarray(canvas)
    small = [
        cv2.resize(plane, (w // fine, h // fine), interpolation=cv2.INTER_AREA) for plane in canvas
    ]
    return np.stack(small)
