"""Distill heads: what a student is asked to share with its teacher."""

from .attention import AttentionHead
from .base import DistillHead, Needs
from .block import BlockHead
from .box_response import BoxResponseHead
from .channel_map import ChannelMapHead
from .co_advise import CoAdviseHead
from .cross_architecture import CrossArchitectureHead
from .cross_kd import CrossKDHead
from .cwd import ChannelWiseHead
from .dense_response import DenseResponseHead
from .distillation_token import DistillationTokenHead
from .early_feature import EarlyFeatureHead
from .encoder_memory import EncoderMemoryHead
from .feature import FeatureHead
from .fgd import FGDHead
from .generation import GenerationHead
from .logit import LogitHead
from .mask import MaskResponseHead
from .noise_adapted import NoiseAdaptedHead
from .object_watch import NoDetectionsError
from .probe import ProbeHead
from .pseudo_label import PseudoLabelHead
from .pyramid import PyramidHead
from .query_aligned import QueryAlignedHead
from .query_hungarian import HungarianQueryHead
from .query_prior import QueryPriorHead
from .query_student import StudentQueryHead
from .recalibration import RecalibrationHead
from .relation import ManifoldHead, QKVRelationHead, RKDHead, SelfSimilarityHead
from .roi import RoIResponseHead
from .rpn import RPNResponseHead
from .simreg import SimRegHead
from .target_aware import TargetAwareHead

__all__ = [
    'AttentionHead',
    'BlockHead',
    'BoxResponseHead',
    'ChannelMapHead',
    'ChannelWiseHead',
    'CoAdviseHead',
    'CrossArchitectureHead',
    'CrossKDHead',
    'DenseResponseHead',
    'DistillHead',
    'DistillationTokenHead',
    'EarlyFeatureHead',
    'EncoderMemoryHead',
    'FGDHead',
    'FeatureHead',
    'GenerationHead',
    'HungarianQueryHead',
    'LogitHead',
    'ManifoldHead',
    'MaskResponseHead',
    'Needs',
    'NoDetectionsError',
    'NoiseAdaptedHead',
    'ProbeHead',
    'PseudoLabelHead',
    'PyramidHead',
    'QKVRelationHead',
    'QueryAlignedHead',
    'QueryPriorHead',
    'RKDHead',
    'RPNResponseHead',
    'RecalibrationHead',
    'RoIResponseHead',
    'SelfSimilarityHead',
    'SimRegHead',
    'StudentQueryHead',
    'TargetAwareHead',
]
