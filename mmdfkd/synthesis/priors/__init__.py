"""Terms of the objective that synthetic images are optimised for."""

from .attention_consistency import AttentionConsistencyPrior
from .attention_focus import AttentionFocusPrior
from .attention_prior import AttentionPrior
from .base import Prior
from .batch_norm import BatchNormPrior
from .boundary import BoundaryPreservingPrior
from .class_prior import ClassPrior
from .context import SynthesisContext
from .contrastive import ContrastivePrior
from .divergence import DivergencePrior
from .information_entropy import InformationEntropyPrior
from .inter_head import InterHeadPrior
from .jensen_shannon import JensenShannonPrior
from .logit_distance import LogitDistancePrior
from .patch_boundary import PatchBoundaryPrior
from .patch_similarity import PatchSimilarityPrior
from .sub_boxes import SubBoxPrior
from .target import TargetPrior
from .total_variation import TotalVariationPrior

__all__ = [
    'AttentionConsistencyPrior',
    'AttentionFocusPrior',
    'AttentionPrior',
    'BatchNormPrior',
    'BoundaryPreservingPrior',
    'ClassPrior',
    'ContrastivePrior',
    'DivergencePrior',
    'InformationEntropyPrior',
    'InterHeadPrior',
    'JensenShannonPrior',
    'LogitDistancePrior',
    'PatchBoundaryPrior',
    'PatchSimilarityPrior',
    'Prior',
    'SubBoxPrior',
    'SynthesisContext',
    'TargetPrior',
    'TotalVariationPrior',
]
