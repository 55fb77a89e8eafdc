"""Renderers: ``renderer(seed, g, size) -> uint8 [3, H, W]``, a function of its arguments alone."""

from .noise import NoiseRenderer
from .procedural import ProceduralRenderer

__all__ = ['NoiseRenderer', 'ProceduralRenderer']
