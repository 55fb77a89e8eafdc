"""Distill heads: what a student is asked to share with its teacher."""

from .attention import AttentionHead
from .base import DistillHead, Needs
from .block import BlockHead
from .channel_map import ChannelMapHead
from .cross_architecture import CrossArchitectureHead
from .cwd import ChannelWiseHead
from .distillation_token import DistillationTokenHead
from .feature import FeatureHead
from .generation import GenerationHead
from .logit import LogitHead
from .noise_adapted import NoiseAdaptedHead
from .probe import ProbeHead
from .pyramid import PyramidHead
from .relation import ManifoldHead, QKVRelationHead, RKDHead, SelfSimilarityHead
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
    'LogitHead',
    'ManifoldHead',
    'Needs',
    'NoiseAdaptedHead',
    'ProbeHead',
    'PyramidHead',
    'QKVRelationHead',
    'RKDHead',
    'RPNResponseHead',
    'RoIResponseHead',
    'SelfSimilarityHead',
    'SimRegHead',
    'TargetAwareHead',
]
