"""Ordinary networks: what an exported student needs, and nothing later."""

from .backbones import MiniViT, ViTDet
from .generators import ConvGenerator, TransformerGenerator
from .layers import LayerNorm2d
from .necks import Lift, SimpleFPN, WideLast

__all__ = [
    'ConvGenerator',
    'LayerNorm2d',
    'Lift',
    'MiniViT',
    'SimpleFPN',
    'TransformerGenerator',
    'ViTDet',
    'WideLast',
]
