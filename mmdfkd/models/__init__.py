"""Ordinary networks: what an exported student needs, and nothing later."""

from .backbones import ConvAttentionViT, MiniViT, SlimmedViT, ViTDet
from .generators import ConvGenerator, TransformerGenerator
from .layers import LayerNorm2d
from .necks import Lift, SimpleFPN, WideLast

__all__ = [
    'ConvAttentionViT',
    'ConvGenerator',
    'LayerNorm2d',
    'Lift',
    'MiniViT',
    'SimpleFPN',
    'SlimmedViT',
    'TransformerGenerator',
    'ViTDet',
    'WideLast',
]
