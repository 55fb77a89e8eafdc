"""Distill heads: what a student is asked to share with its teacher."""

from .base import DistillHead, Needs
from .block import BlockHead
from .distillation_token import DistillationTokenHead
from .feature import FeatureHead
from .logit import LogitHead
from .noise_adapted import NoiseAdaptedHead
from .pyramid import PyramidHead
from .relation import ManifoldHead, QKVRelationHead, RKDHead, SelfSimilarityHead
from .roi import RoIResponseHead
from .rpn import RPNResponseHead

__all__ = [
    'BlockHead',
    'DistillHead',
    'DistillationTokenHead',
    'FeatureHead',
    'LogitHead',
    'ManifoldHead',
    'Needs',
    'NoiseAdaptedHead',
    'PyramidHead',
    'QKVRelationHead',
    'RKDHead',
    'RPNResponseHead',
    'RoIResponseHead',
    'SelfSimilarityHead',
]
