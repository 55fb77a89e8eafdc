from .mini_vit import MiniViT
from .vitdet import ViTDet

__all__ = ['MiniViT', 'ViTDet']
