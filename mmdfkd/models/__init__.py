"""Ordinary networks: what an exported student needs, and nothing later."""

from .backbones import ViTDet
from .layers import LayerNorm2d
from .necks import Lift, SimpleFPN, WideLast

__all__ = ['LayerNorm2d', 'Lift', 'SimpleFPN', 'ViTDet', 'WideLast']
