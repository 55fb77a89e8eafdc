from .conv_attention_vit import ConvAttentionViT
from .mini_vit import MiniViT
from .slimmed_vit import SlimmedViT
from .vitdet import ViTDet

__all__ = ['ConvAttentionViT', 'MiniViT', 'SlimmedViT', 'ViTDet']
