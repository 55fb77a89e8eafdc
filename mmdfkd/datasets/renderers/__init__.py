"""Renderers: ``renderer(seed, g, size) -> uint8 [3, H, W]``, a function of its arguments alone."""

from .combined import CombinedRenderer
from .dead_leaves import DeadLeavesRenderer
from .fractals import FractalRenderer
from .glyphs import GlyphRenderer
from .looks import LookRenderer
from .noise import NoiseRenderer
from .procedural import ProceduralRenderer
from .shaders import ShaderRenderer
from .sinusoids import SinusoidRenderer

__all__ = [
    'CombinedRenderer',
    'DeadLeavesRenderer',
    'FractalRenderer',
    'GlyphRenderer',
    'LookRenderer',
    'NoiseRenderer',
    'ProceduralRenderer',
    'ShaderRenderer',
    'SinusoidRenderer',
]
