from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from .stream import stream


class Renderer(ABC):
    """Makes images: a sample is a function of the run's seed and the sample's index alone."""

    def __call__(self, seed: int, g: int, size: tuple[int, int]) -> np.ndarray:
        """Render sample ``g``.

        Args:
            seed (int): Seed of the run, not negative.
            g (int): Global index of the sample, not negative.
            size (tuple[int, int]): Height and width in pixels.

        Returns:
            np.ndarray: RGB, uint8, ``[3, H, W]``.
        """
        return self._render(seed, g, size)

    @abstractmethod
    def _render(self, seed: int, g: int, size: tuple[int, int]) -> np.ndarray:
        """As :meth:`__call__`."""


class DrawnRenderer(Renderer):
    """A renderer that draws each image from one random stream.

    Attributes:
        purpose: What the numbers are for; renderers of different purposes never share any.
    """

    purpose: ClassVar[str]

    def _render(self, seed: int, g: int, size: tuple[int, int]) -> np.ndarray:
        return self._draw(stream(self.purpose, seed, g), size)

    @abstractmethod
    def _draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """An image, uint8 ``[3, H, W]``; ``rng`` is its only source of chance."""
