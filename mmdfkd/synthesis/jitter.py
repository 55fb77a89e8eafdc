from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: What lies beyond the border: about the grey that detectors are padded with.
_GREY = 114 / 255


class SceneJitter:
    """Another view of every scene at every step of its optimisation; differentiable.

    Zoom and shift that keep every box inside, contrast and brightness of each channel, and pixel
    noise. What only one alignment with the patches, one colour or one exact pixel value shows is
    gone in the next view, so what is left of an object is what a person sees too (Mordvintsev et
    al., "Inceptionism", 2015; Athalye et al., "Synthesizing Robust Adversarial Examples", ICML
    2018, expectation over transformation).

    Args:
        zoom (tuple[float, float]): Range of the enlargement, log-uniform.
        shift (float): Most shift beyond the centred zoom, as a share of the side.
        contrast (float): Deviation of the logarithm of each channel's contrast.
        brightness (float): Deviation of each channel's brightness, of 1.
        noise (float): Most deviation of the pixel noise, of 1.

    Raises:
        ValueError: If the zoom is no range.
    """

    def __init__(
        self,
        zoom: tuple[float, float] = (0.78, 1.16),
        shift: float = 0.08,
        contrast: float = 0.15,
        brightness: float = 0.06,
        noise: float = 0.05,
    ) -> None:
        if not 0 < zoom[0] <= zoom[1]:
            raise ValueError(f'SceneJitter: zoom must be (least, most), above 0, not {zoom}.')
        self.zoom = zoom
        self.shift = shift
        self.contrast = contrast
        self.brightness = brightness
        self.noise = noise

    def _affine(
        self, boxes: Tensor, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[float, np.ndarray]:
        """Zoom, and shift ``(x, y)`` in pixels: ``out = zoom * in + shift``."""
        side = np.array(size[::-1], np.float64)
        zoom = float(np.exp(rng.uniform(*np.log(self.zoom))))
        centred = side * (1 - zoom) / 2
        if len(boxes):
            low = boxes[:, :2].amin(0).double().cpu().numpy()
            high = boxes[:, 2:].amax(0).double().cpu().numpy()
        else:
            low = high = side / 2
        # Boxes at both borders leave no room for an enlargement.
        zoom = min(zoom, float((side / np.maximum(high - low, 1e-6)).min()))
        least, most = -zoom * low, side - zoom * high
        start = np.clip(centred - self.shift * side, least, most)
        stop = np.clip(centred + self.shift * side, least, most)
        return zoom, start + rng.random(2) * (stop - start)

    def __call__(
        self,
        images: Tensor,
        boxes: Sequence[Tensor],
        rngs: Sequence[np.random.Generator],
    ) -> tuple[Tensor, list[Tensor]]:
        """A view of each image.

        Args:
            images (Tensor): ``[B, 3, H, W]`` in [0, 1].
            boxes (Sequence[Tensor]): Per image ``[N, 4]`` xyxy pixels; may be empty.
            rngs (Sequence[np.random.Generator]): The random numbers of each image's view.

        Returns:
            tuple[Tensor, list[Tensor]]: The views, not clamped, and the boxes in them.
        """
        height, width = images.shape[-2:]
        side = np.array([width, height], np.float64)
        thetas, moved, colours, levels, noises = [], [], [], [], []
        for own, rng in zip(boxes, rngs, strict=True):
            zoom, shift = self._affine(own, (height, width), rng)
            moved.append(own * zoom + own.new_tensor(np.tile(shift, 2)))
            # From output to input, in [-1, 1].
            offset = (1 - 2 * shift / side) / zoom - 1
            thetas.append([[1 / zoom, 0, offset[0]], [0, 1 / zoom, offset[1]]])
            colours.append(np.exp(rng.normal(0, 1, 3) * self.contrast))
            levels.append(rng.normal(0, 1, 3) * self.brightness)
            noises.append(
                rng.standard_normal((3, height, width), np.float32) * rng.random() * self.noise
            )
        grid = F.affine_grid(images.new_tensor(thetas), list(images.shape), align_corners=False)
        views = F.grid_sample(images - _GREY, grid, padding_mode='zeros', align_corners=False)
        colour = images.new_tensor(np.stack(colours))[..., None, None]
        level = images.new_tensor(np.stack(levels))[..., None, None]
        noise = torch.as_tensor(np.stack(noises), dtype=images.dtype, device=images.device)
        return views * colour + _GREY + level + noise, moved
