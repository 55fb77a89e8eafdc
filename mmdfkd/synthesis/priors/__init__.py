"""Terms of the objective that synthetic images are optimised for."""

from .base import Prior
from .context import SynthesisContext
from .divergence import DivergencePrior
from .target import TargetPrior
from .total_variation import TotalVariationPrior

__all__ = ['DivergencePrior', 'Prior', 'SynthesisContext', 'TargetPrior', 'TotalVariationPrior']
