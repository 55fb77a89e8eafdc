"""How training images come about where there are none."""

from .augment import LightAugment
from .bank import ReplayBank
from .frozen import frozen
from .priors import DivergencePrior, Prior, SynthesisContext, TargetPrior, TotalVariationPrior
from .sources import (
    LayoutInversionSource,
    PooledSource,
    RefinedSource,
    RenderedSource,
    SyntheticSource,
)

__all__ = [
    'DivergencePrior',
    'LayoutInversionSource',
    'LightAugment',
    'PooledSource',
    'Prior',
    'RefinedSource',
    'RenderedSource',
    'ReplayBank',
    'SynthesisContext',
    'SyntheticSource',
    'TargetPrior',
    'TotalVariationPrior',
    'frozen',
]
