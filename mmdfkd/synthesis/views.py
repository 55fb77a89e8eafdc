from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmdfkd.registry import TASK_UTILS

from .jitter import SceneJitter


@TASK_UTILS.register_module()
class InversionViews:
    """Another view of every image at every step of its inversion; differentiable.

    Zoom, shift, colours and pixel noise are :class:`~mmdfkd.synthesis.jitter.SceneJitter`'s; a
    zoom above 1 is a crop. Beside them a horizontal flip, off by default: what a teacher was not
    trained to see both ways, a flip spoils.

    Where only some patches are optimised, patches have to stay patches: then there are no zoom and
    no shift, but a roll by whole patches, and the numbers of the patches go with them.

    Args:
        flip (float): Probability of a horizontal flip.
        roll (int): Most patches that a view of patches is rolled by, in each direction.
        **jitter: Arguments of :class:`~mmdfkd.synthesis.jitter.SceneJitter`.

    Raises:
        ValueError: If the probability is none, or the roll negative.
    """

    def __init__(self, flip: float = 0.0, roll: int = 0, **jitter) -> None:
        if not 0 <= flip <= 1:
            raise ValueError(f'InversionViews: flip is a probability, got {flip}.')
        if roll < 0:
            raise ValueError(f'InversionViews: roll is at least 0, got {roll}.')
        self.flip = flip
        self.roll = roll
        self.jitter = SceneJitter(**jitter)
        still: Mapping = {**jitter, 'zoom': (1.0, 1.0), 'shift': 0.0}
        self.colours = SceneJitter(**still)

    def __call__(
        self,
        images: Tensor,
        rngs: Sequence[np.random.Generator],
        boxes: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """A view of each image.

        Args:
            images (Tensor): ``[B, 3, H, W]`` in [0, 1].
            rngs (Sequence[np.random.Generator]): The random numbers of each image's view.
            boxes (Sequence[Tensor], optional): Per image ``[N, 4]`` xyxy pixels, which stay inside.

        Returns:
            tuple[Tensor, list[Tensor]]: The views, not clamped, and the boxes in them.
        """
        if boxes is None:
            boxes = [images.new_zeros((0, 4)) for _ in rngs]
        views, moved = self.jitter(images, boxes, rngs)
        flips = [rng.random() < self.flip for rng in rngs]
        if not any(flips):
            return views, moved
        wide = images.shape[-1]
        moved = [
            torch.stack([wide - own[:, 2], own[:, 1], wide - own[:, 0], own[:, 3]], 1)
            if flip
            else own
            for own, flip in zip(moved, flips, strict=True)
        ]
        return _flipped(views, flips), moved

    def of_patches(
        self,
        images: Tensor,
        rngs: Sequence[np.random.Generator],
        kept: Tensor,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """A view of each image that maps patches to patches.

        Args:
            images (Tensor): ``[B, 3, H, W]`` in [0, 1].
            rngs (Sequence[np.random.Generator]): The random numbers of each image's view.
            kept (Tensor): ``[B, K]`` numbers of the patches that matter.
            grid (tuple[int, int]): Rows and columns of the patches.

        Returns:
            tuple[Tensor, Tensor]: The views, not clamped, and where each kept patch is in its view,
                in the order of ``kept``.
        """
        boxes = [images.new_zeros((0, 4)) for _ in rngs]
        views, _ = self.colours(images, boxes, rngs)
        rows, columns = grid
        shifts = [rng.integers(-self.roll, self.roll + 1, 2).tolist() for rng in rngs]
        flips = [rng.random() < self.flip for rng in rngs]
        if any(map(any, shifts)):
            tall, wide = (side // n for side, n in zip(images.shape[-2:], grid, strict=True))
            rolled = [
                view.roll((down * tall, right * wide), (1, 2))
                for view, (down, right) in zip(views, shifts, strict=True)
            ]
            views = torch.stack(rolled)
        down, right = kept.new_tensor(shifts)[..., None].unbind(1)
        row, column = (kept // columns + down) % rows, (kept % columns + right) % columns
        mirrored = kept.new_tensor(flips, dtype=torch.bool)[:, None]
        column = torch.where(mirrored, columns - 1 - column, column)
        return _flipped(views, flips), row * columns + column


def _flipped(images: Tensor, flips: Sequence[bool]) -> Tensor:
    """Those images mirrored whose turn it is."""
    if not any(flips):
        return images
    turn = torch.tensor(flips, device=images.device)[:, None, None, None]
    return torch.where(turn, images.flip(-1), images)
