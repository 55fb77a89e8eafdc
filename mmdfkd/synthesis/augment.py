from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.registry import TASK_UTILS

from .greyness import grey_images, kept_grey
from .symmetry import SYMMETRIES


@TASK_UTILS.register_module()
class LightAugment:
    """Flips, quarter turns, a random crop and a colour jitter; a function of ``(seed, g)``.

    What a procedural image shows has no right side up, so flips and turns are as good as new ones.
    Where that is not so, :meth:`restrict` leaves some out. An image without colour stays without.

    Args:
        flip (float): Probability of a horizontal flip; likewise of a vertical one.
        turn (float): Probability of a quarter turn (square images only).
        scale (tuple[float, float]): Range of the enlargement, log-uniform; below 1 the borders are
            mirrored.
        shift (float): Most shift in each direction, as a share of the side.
        contrast (float): Deviation of the logarithm of each channel's contrast.
        brightness (float): Deviation of each channel's brightness, of 1.
        least_held (float): A flip or a turn is left out of images in which the teacher finds its
            classes if less than this share of what it finds is still there afterwards.
    """

    def __init__(
        self,
        flip: float = 0.5,
        turn: float = 0.5,
        scale: tuple[float, float] = (0.8, 1.25),
        shift: float = 0.12,
        contrast: float = 0.15,
        brightness: float = 0.06,
        least_held: float = 0.8,
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f'LightAugment: scale must be (least, most), above 0, not {scale}.')
        self.flip = flip
        self.turn = turn
        self.scale = scale
        self.shift = shift
        self.contrast = contrast
        self.brightness = brightness
        self.least_held = least_held
        self._held = np.ones(3, bool)

    def restrict(self, held: Mapping[str, float]) -> None:
        """Leave out the flips and turns that change what a teacher sees; the rest stays as it was.

        Args:
            held (Mapping[str, float]): Of
                :func:`~mmdfkd.synthesis.symmetry.held_symmetries`.
        """
        self._held = np.array([held[name] >= self.least_held for name in SYMMETRIES])

    @property
    def used(self) -> list[str]:
        """Names of the symmetries that are not left out."""
        return [name for name, held in zip(SYMMETRIES, self._held, strict=True) if held]

    def _draw(self, seed: int, g: int, square: bool) -> tuple[np.ndarray, np.ndarray]:
        """The affine map (output to input, in [-1, 1]) and the colour map, each ``[2, 3]``."""
        rng = stream('augment', seed, g)
        flipped = (rng.random(2) < self.flip) & self._held[:2]
        matrix = np.diag(np.where(flipped, -1.0, 1.0))
        turned = rng.random() < self.turn and self._held[2]
        if turned and square:
            matrix = matrix[::-1]
        zoom = np.exp(rng.uniform(*np.log(self.scale)))
        shift = rng.uniform(-2, 2, 2) * self.shift
        colour = np.stack(
            [np.exp(rng.normal(0, 1, 3) * self.contrast), rng.normal(0, 1, 3) * self.brightness]
        )
        return np.concatenate([matrix / zoom, shift[:, None]], 1), colour

    def follow(
        self, boxes: Sequence[Tensor], seed: int, indices: Sequence[int], size: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Where boxes are in the images that :meth:`__call__` makes of the same indices.

        A copy of an object in a mirrored border has no box.

        Args:
            boxes (Sequence[Tensor]): Per image ``[N, 4]`` xyxy pixels; may be empty.
            seed (int): Seed of the run.
            indices (Sequence[int]): The samples' global indices.
            size (tuple[int, int]): Height and width of the images in pixels.

        Returns:
            tuple[list[Tensor], list[Tensor]]: Per image the boxes inside it, ``[K, 4]``, and which
                of the ``N`` they are, ``[N]`` bool: those of which at least half is inside.
        """
        h, w = size
        moved, kept = [], []
        for own, g in zip(boxes, indices, strict=True):
            affine, _ = self._draw(seed, g, h == w)
            # From output to input, in [-1, 1]; axes are mirrored and exchanged, so a box stays one.
            back = np.linalg.inv(affine[:, :2])
            side = own.new_tensor([w, h], dtype=torch.float64)
            corners = own.double().view(-1, 2, 2) * 2 / side - 1
            corners = (corners - own.new_tensor(affine[:, 2], dtype=torch.float64)) @ (
                own.new_tensor(back.T, dtype=torch.float64)
            )
            corners = (corners + 1) * side / 2
            whole = torch.cat([corners.amin(1), corners.amax(1)], 1)
            inside = whole.clamp(min=0).minimum(side.repeat(2))
            areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (inside, whole)]
            mine = 2 * areas[0] >= areas[1]
            moved.append(inside[mine].to(own))
            kept.append(mine)
        return moved, kept

    def __call__(self, images: Tensor, seed: int, indices: Sequence[int]) -> Tensor:
        """Augment a batch; every image depends on its own index only.

        Args:
            images (Tensor): ``[B, 3, H, W]`` in [0, 1].
            seed (int): Seed of the run.
            indices (Sequence[int]): The samples' global indices.

        Returns:
            Tensor: New images in [0, 1].
        """
        h, w = images.shape[-2:]
        drawn = [self._draw(seed, g, h == w) for g in indices]
        affine = images.new_tensor(np.stack([a for a, _ in drawn]))
        colour = images.new_tensor(np.stack([c for _, c in drawn]))[..., None, None]
        grey = grey_images(images)
        x = (torch.arange(w, device=images.device, dtype=images.dtype) * 2 + 1) / w - 1
        y = (torch.arange(h, device=images.device, dtype=images.dtype) * 2 + 1) / h - 1
        # Written out: a batched matrix product may round differently with another batch size.
        a = affine[:, :, :, None, None]
        grid = a[:, :, 0] * x + a[:, :, 1] * y[:, None] + a[:, :, 2]
        moved = F.grid_sample(
            images,
            grid.permute(0, 2, 3, 1),
            mode='bilinear',
            padding_mode='reflection',
            align_corners=False,
        )
        scale, offset = (kept_grey(part, grey) for part in colour.unbind(1))
        return ((moved - 0.5) * scale + 0.5 + offset).clamp_(0, 1)
