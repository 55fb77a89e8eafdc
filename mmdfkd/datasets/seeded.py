import random
from collections.abc import Mapping

import numpy as np
import torch
from torch.utils.data import Dataset

from mmdfkd.registry import DATASETS

from .renderers.stream import stream


@DATASETS.register_module()
class SeededDataset(Dataset):
    """An ordinary dataset as a function of ``(seed, g)``: order and augmentation repeat exactly.

    Sample ``g`` of ``n`` is sample ``g mod n`` of a permutation of its own for each pass; while its
    pipeline runs, the global generators are seeded from ``(seed, g)``, and put back afterwards. So
    nothing but the seed need be kept to make an augmented image again (TinyViT's stored seeds; Wu
    et al., ECCV 2022). Takes ``mmdfkd.GlobalIndexSampler``.

    Args:
        dataset (Mapping): Config of the dataset.
        seed (int | None): None takes the run's, which the sampler hands on; 0 without one.
    """

    def __init__(self, dataset: Mapping, seed: int | None = None) -> None:
        # As every wrapper of mmengine calls it.
        self.dataset = DATASETS.build(dataset)
        self.seed = seed
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    @property
    def metainfo(self) -> dict:
        """The dataset's."""
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def place(self, g: int) -> int:
        """Which sample of the dataset ``g`` is."""
        cycle, position = divmod(int(g), len(self.dataset))
        key = (self.seed or 0, cycle)
        if self._order is None or self._order[0] != key:
            rng = stream('order of a dataset', *key)
            self._order = (key, rng.permutation(len(self.dataset)))
        return int(self._order[1][position])

    def __getitem__(self, g: int) -> dict:
        """Sample ``g``: what the pipeline gives, and ``g``."""
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        value = int(stream('augmentation', self.seed or 0, int(g)).integers(1 << 32))
        random.seed(value)
        np.random.seed(value)
        torch.manual_seed(value)
        try:
            item = dict(self.dataset[self.place(g)])
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
        return dict(item, g=int(g))
