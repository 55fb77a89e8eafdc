import numpy as np

from mmdfkd.registry import TASK_UTILS

from .base import DrawnRenderer


@TASK_UTILS.register_module()
class NoiseRenderer(DrawnRenderer):
    """Independent pixels: the floor that every other source is measured against.

    Args:
        kind (str): ``'gaussian'`` or ``'uniform'``.
        mean (float): Mean of the Gaussian, in [0, 1].
        std (float): Standard deviation of the Gaussian, in [0, 1].
    """

    purpose = 'noise'

    def __init__(self, kind: str = 'gaussian', mean: float = 0.5, std: float = 0.25) -> None:
        if kind not in ('gaussian', 'uniform'):
            raise ValueError(f"NoiseRenderer: kind must be 'gaussian' or 'uniform', not {kind!r}.")
        self.kind = kind
        self.mean = mean
        self.std = std

    def _draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        if self.kind == 'uniform':
            return rng.integers(0, 256, (3, *size), dtype=np.uint8)
        field = rng.standard_normal((3, *size), dtype=np.float32) * self.std + self.mean
        return np.rint(np.clip(field, 0, 1) * 255).astype(np.uint8)
