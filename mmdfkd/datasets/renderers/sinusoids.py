from math import pi

import numpy as np

from mmdfkd.registry import TASK_UTILS

from .base import DrawnRenderer
from .camera import camera
from .fields import log_uniform
from .palette import painted, palette, stretched


@TASK_UTILS.register_module()
class SinusoidRenderer(DrawnRenderer):
    """Sums of plane waves, and sines of such sums.

    A few frequencies give plaids and moire, many of them a smooth random texture; a sine of a sum
    bends and splits its stripes.

    Args:
        waves (tuple[int, int]): Least and most plane waves of one sum; small numbers are more
            frequent.
        cycles (tuple[float, float]): Range of a wave's cycles across the image's shorter side,
            log-uniform; none is finer than 4 px.

    Raises:
        ValueError: If an argument makes no sense.
    """

    purpose = 'sinusoids'

    def __init__(
        self, waves: tuple[int, int] = (2, 24), cycles: tuple[float, float] = (0.4, 10.0)
    ) -> None:
        if not 1 <= waves[0] <= waves[1]:
            raise ValueError(
                f'SinusoidRenderer: waves must be (least, most), at least 1, not {waves}.'
            )
        if not 0 < cycles[0] <= cycles[1]:
            raise ValueError(
                f'SinusoidRenderer: cycles must be (least, most), above 0, not {cycles}.'
            )
        self.waves = waves
        self.cycles = cycles

    def _draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        h, w = size
        if rng.random() < 0.35:
            # Three sums, mixed so that the channels are partly alike.
            mix = np.eye(3) + rng.uniform(0, 1.5)
            canvas = np.tensordot(mix / mix.sum(1, keepdims=True), self._sums(rng, h, w, 3), 1)
            canvas = canvas * rng.uniform(0.2, 0.6) + rng.uniform(0.25, 0.75, (3, 1, 1))
        else:
            canvas = painted(stretched(self._sums(rng, h, w, 1)[0]), palette(rng))
        return camera(rng, np.ascontiguousarray(canvas, np.float32))

    def _sums(self, rng: np.random.Generator, h: int, w: int, count: int) -> np.ndarray:
        """Fields ``[count, h, w]`` of about [-1, 1]: of the same waves, with their own phases."""
        least, most = self.waves
        n = int(log_uniform(rng, least, most + 1))
        side = float(min(h, w))
        finest = max(min(self.cycles[1], side / 4), self.cycles[0])
        # One image keeps to a part of the range: coarse, fine or both.
        low = log_uniform(rng, self.cycles[0], finest)
        high = log_uniform(rng, low, finest)
        cycles = low * (high / low) ** rng.random(n)
        around = pi if rng.random() < 0.6 else rng.uniform(0.1, 1.0)
        angle = rng.uniform(0, pi) + rng.uniform(-around, around, n)
        gain = (cycles / cycles.min()) ** -rng.uniform(0, 1.2)
        gain /= np.sqrt((gain**2).sum())
        fields = _plane_waves(rng, h, w, cycles * (2 * pi / side), angle, gain, count)
        for _ in range(int(rng.integers(0, 3))):
            bend = log_uniform(rng, 0.6, 4.0)
            fields = np.sin(fields * bend + rng.uniform(0, 2 * pi))
        if rng.random() < 0.2:
            fields = np.clip(fields * log_uniform(rng, 2, 10), -1, 1)
        return fields


def _plane_waves(
    rng: np.random.Generator,
    h: int,
    w: int,
    frequency: np.ndarray,
    angle: np.ndarray,
    gain: np.ndarray,
    count: int,
) -> np.ndarray:
    """``count`` sums of plane waves with random phases, ``float32 [count, h, w]``.

    ``sin(u x + v y + p) = sin(u x + p) cos(v y) + cos(u x + p) sin(v y)``: so a sum is one matrix
    product, in double precision, lest its rounding show in the pixels.
    """
    phase = rng.uniform(0, 2 * pi, (count, len(frequency), 1))
    along = (frequency * np.cos(angle))[:, None] * np.arange(w) + phase
    down = np.arange(h)[:, None] * (frequency * np.sin(angle))
    columns = np.concatenate([np.sin(along), np.cos(along)], 1) * np.tile(gain, 2)[:, None]
    rows = np.concatenate([np.cos(down), np.sin(down)], 1)
    return (rows @ columns).astype(np.float32)
