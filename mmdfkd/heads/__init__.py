"""Distill heads: what a student is asked to share with its teacher."""

from .base import DistillHead, Needs
from .block import BlockHead
from .feature import FeatureHead
from .logit import LogitHead
from .pyramid import PyramidHead
from .roi import RoIResponseHead
from .rpn import RPNResponseHead

__all__ = [
    'BlockHead',
    'DistillHead',
    'FeatureHead',
    'LogitHead',
    'Needs',
    'PyramidHead',
    'RPNResponseHead',
    'RoIResponseHead',
]
