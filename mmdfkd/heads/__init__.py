"""Distill heads: what a student is asked to share with its teacher."""

from .attention import AttentionHead
from .base import DistillHead, Needs
from .block import BlockHead
from .channel_map import ChannelMapHead
from .cross_architecture import CrossArchitectureHead
from .cwd import ChannelWiseHead
from .distillation_token import DistillationTokenHead
from .feature import FeatureHead
from .encoder_memory import EncoderMemoryHead
from .generation import GenerationHead
from .logit import LogitHead
from .noise_adapted import NoiseAdaptedHead
from .probe import ProbeHead
from .pyramid import PyramidHead
from .pseudo_label import NoDetectionsError, PseudoLabelHead
from .relation import ManifoldHead, QKVRelationHead, RKDHead, SelfSimilarityHead
from .query_aligned import QueryAlignedHead
from .query_hungarian import HungarianQueryHead
from .query_prior import QueryPriorHead
from .roi import RoIResponseHead
from .rpn import RPNResponseHead
from .simreg import SimRegHead
from .target_aware import TargetAwareHead

__all__ = [
    'AttentionHead',
    'BlockHead',
    'ChannelMapHead',
    'ChannelWiseHead',
    'CrossArchitectureHead',
    'DistillHead',
    'DistillationTokenHead',
    'FeatureHead',
    'GenerationHead',
    'EncoderMemoryHead',
    'LogitHead',
    'ManifoldHead',
    'HungarianQueryHead',
    'Needs',
    'NoiseAdaptedHead',
    'ProbeHead',
    'NoDetectionsError',
    'PyramidHead',
    'QKVRelationHead',
    'PseudoLabelHead',
    'RKDHead',
    'RPNResponseHead',
    'QueryAlignedHead',
    'QueryPriorHead',
    'RoIResponseHead',
    'SelfSimilarityHead',
    'SimRegHead',
    'TargetAwareHead',
]
