from collections.abc import Mapping

import numpy as np

from mmdfkd.registry import TASK_UTILS

from .base import Renderer

#: Shares of an image's pixels that are at most as dark as its ground, and as its lightest parts.
_GROUND = 0.5
_TOP = 0.97
#: Where both are alike, an image stays flat.
_LEAST = 1e-3


def _stretched(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Between two quantiles of the image, cut off at both."""
    floor, top = np.quantile(image, (low, high))
    return np.clip((image - floor) / (top - floor + _LEAST), 0, 1)


def _grey(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(image.mean(0, keepdims=True), image.shape)


def _dark(image: np.ndarray) -> np.ndarray:
    return _stretched(_grey(image), _GROUND, _TOP)


#: Looks by name: functions of an image ``[3, H, W]`` in [0, 1].
LOOKS = {
    'plain': lambda image: image,
    'grey': _grey,
    'dark': _dark,
    'light': lambda image: 1 - _dark(1 - image),
    'stretched': lambda image: _stretched(image, 1 - _TOP, _TOP),
}


@TASK_UTILS.register_module()
class LookRenderer(Renderer):
    """Images of a renderer in another look: grey, on a dark or a light ground, of full contrast.

    What a teacher was trained on may be grey, and have a ground of one tone: scans, X-rays, thermal
    and microscope images, handwriting. ``'dark'`` puts the darker half of a grey image to black and
    its lightest parts to white; ``'light'`` is its negative; ``'stretched'`` uses the range of
    tones, in colour.

    Args:
        renderer (Mapping): Config of the renderer.
        look (str): ``'plain'``, ``'grey'``, ``'dark'``, ``'light'`` or ``'stretched'``.

    Raises:
        ValueError: On another look.
    """

    def __init__(self, renderer: Mapping, look: str = 'plain') -> None:
        if look not in LOOKS:
            raise ValueError(f'LookRenderer: look must be one of {list(LOOKS)}, not {look!r}.')
        self.renderer = TASK_UTILS.build(renderer)
        self.look = look

    def _render(self, seed: int, g: int, size: tuple[int, int]) -> np.ndarray:
        image = self.renderer(seed, g, size)
        if self.look == 'plain':
            return image
        found = LOOKS[self.look](image.astype(np.float32) / 255)
        return (found * 255).round().astype(np.uint8)
