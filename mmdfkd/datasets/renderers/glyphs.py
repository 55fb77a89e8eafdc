from math import pi

import numpy as np

from mmdfkd.registry import TASK_UTILS

from .base import DrawnRenderer
from .fields import log_uniform
from .figures import knot, line, loop, place, rasterise
from .palette import any_colour, near

_GROUNDS = ('dark', 'light', 'any')
#: Least ink, of full contrast.
_FAINT = 0.75
#: Deviation of the middle of a glyph from the image's, of the shorter side.
_OFF = 0.08


@TASK_UTILS.register_module()
class GlyphRenderer(DrawnRenderer):
    """Characters of no script: one figure of a pen, of even width, that fills a flat ground.

    Strokes, loops and strokes that meet, about the middle: what handwriting, signs and drawings of
    lines have in common. Contours alone pre-train a ViT about as well as photographs do (Kataoka et
    al., CVPR 2022); which glyph is which is for the teacher to say.

    Args:
        ground (str): ``'dark'``: light ink on black; ``'light'``: its negative; ``'any'``: a
            ground of any colour, and ink at the other end of its brightness, as faint as a grey
            ground allows.
        extent (tuple[float, float]): Range of a glyph's longest side, relative to the image's
            shorter side; uniform.
        width (tuple[float, float]): Range of the pen's width, relative to the same, but at least
            1 px; log-uniform.

    Raises:
        ValueError: If an argument makes no sense.
    """

    purpose = 'glyphs'

    def __init__(
        self,
        ground: str = 'any',
        extent: tuple[float, float] = (0.45, 0.95),
        width: tuple[float, float] = (0.05, 0.16),
    ) -> None:
        if ground not in _GROUNDS:
            raise ValueError(f'GlyphRenderer: ground must be one of {_GROUNDS}, not {ground!r}.')
        for name, (least, most) in (('extent', extent), ('width', width)):
            if not 0 < least <= most:
                raise ValueError(
                    f'GlyphRenderer: {name} must be (least, most), above 0, not {(least, most)}.'
                )
        self.ground = ground
        self.extent = extent
        self.width = width

    def _draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        ink = self._ink(rng, *size)
        if self.ground == 'any':
            ground = any_colour(rng)
            ink_colour = near(rng, ground, rng.uniform(_FAINT, 1.0))
        else:
            ground, ink_colour = np.zeros(3), np.full(3, rng.uniform(_FAINT, 1.0))
            if self.ground == 'light':
                ground, ink_colour = 1 - ground, 1 - ink_colour
        ground, ink_colour = ground[:, None, None], ink_colour[:, None, None]
        return ((ground + ink * (ink_colour - ground)) * 255 + 0.5).astype(np.uint8)

    def _ink(self, rng: np.random.Generator, h: int, w: int) -> np.ndarray:
        """Where the pen was, ``[h, w]`` in [0, 1]."""
        side = float(min(h, w))
        extent = side * rng.uniform(*self.extent)
        width = max(1.0, side * log_uniform(rng, *self.width))
        paths = (line, loop, knot)[int(rng.integers(3))](rng)
        for path in paths:
            path.width = width / extent
        centre = np.array([w, h]) / 2 + rng.normal(0, _OFF, 2) * side
        aspect = 1.0 if rng.random() < 0.5 else log_uniform(rng, 0.4, 1.0)
        turned = place(paths, tuple(centre), extent, rng.uniform(0, 2 * pi), aspect)
        ink = np.zeros((h, w), np.float32)
        if (layer := rasterise(turned, h, w)) is not None:
            mask, y, x = layer
            ink[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        return ink / np.float32(255)
