from .attention import WindowAttention, decomposed_rel_pos, window_partition, window_unpartition
from .layer_norm import LayerNorm2d

__all__ = [
    'LayerNorm2d',
    'WindowAttention',
    'decomposed_rel_pos',
    'window_partition',
    'window_unpartition',
]
