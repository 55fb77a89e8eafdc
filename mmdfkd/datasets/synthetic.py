from collections.abc import Mapping, Sequence

import torch
from torch.utils.data import Dataset

from mmdfkd.registry import DATASETS, TASK_UTILS


@DATASETS.register_module()
class SyntheticDataset(Dataset):
    """A dataset without files: sample ``g`` is its index and, if a renderer is set, its pixels.

    The pixels are a function of ``(seed, g)`` alone, whatever the rank, the worker or the number of
    processes.

    Args:
        image_size (int | Sequence[int]): Side, or height and width, in pixels.
        renderer (Mapping | None): Config of a renderer (see ``mmdfkd.datasets.renderers``), run in
            the dataloader's workers. None where the source makes or keeps its images itself: an
            item then costs nothing.
        seed (int | None): Seed of the pixels, not negative. None takes the run's, which
            :class:`GlobalIndexSampler` hands on; 0 without one.
        metainfo (Mapping | None): As of any mmengine dataset, such as ``dict(classes=...)``.
        length (int): What ``len()`` says: the samples of a nominal epoch. Any index from 0 on is
            valid, since :class:`GlobalIndexSampler` never ends.

    Raises:
        ValueError: If the image size, the seed or the length make no sense.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        renderer: Mapping | None = None,
        seed: int | None = None,
        metainfo: Mapping | None = None,
        length: int = 100_000,
    ) -> None:
        self.image_size = check_size(image_size)
        if seed is not None and seed < 0:
            raise ValueError(f'SyntheticDataset: seed must not be negative, got {seed}.')
        if length < 1:
            raise ValueError(f'SyntheticDataset: length must be at least 1, got {length}.')
        self.renderer = None if renderer is None else TASK_UTILS.build(renderer)
        self.seed = seed
        self.length = length
        self._metainfo = dict(metainfo or {})

    @property
    def metainfo(self) -> dict:
        """Meta information, ``classes`` among it if given."""
        return dict(self._metainfo)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, g: int) -> dict:
        """Sample ``g``.

        Returns:
            dict: ``g`` (int) and, with a renderer, ``image``: RGB uint8 tensor ``[3, H, W]``.
        """
        item = dict(g=int(g))
        if self.renderer is not None:
            item['image'] = torch.as_tensor(self.renderer(self.seed or 0, int(g), self.image_size))
        return item


def check_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width as two positive integers.

    Raises:
        ValueError: Anything else.
    """
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(
            'image_size must be a positive integer or (height, width) of two of them, in pixels; '
            f'got {image_size!r}.'
        )
    return size
