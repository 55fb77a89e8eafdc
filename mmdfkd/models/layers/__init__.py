from .attention import WindowAttention, decomposed_rel_pos, window_partition, window_unpartition
from .layer_norm import LayerNorm2d
from .token_slimming import TokenRecovery, TokenSlimming

__all__ = [
    'LayerNorm2d',
    'TokenRecovery',
    'TokenSlimming',
    'WindowAttention',
    'decomposed_rel_pos',
    'window_partition',
    'window_unpartition',
]
