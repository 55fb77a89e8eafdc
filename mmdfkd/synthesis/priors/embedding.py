"""One vector an image, of what the teacher sees in all of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Memory
from mmdfkd.losses.reduce import at_least_float32

from .parts import AttentionLayer, attention_layers

#: Shares of the depth whose blocks are read.
_DEPTHS = (1 / 3, 2 / 3, 1.0)


def embedding_layers(teacher: Adapter) -> list[AttentionLayer]:
    """Three blocks of a transformer, at the thirds of its depth; none for other networks."""
    layers = attention_layers(teacher.net)
    chosen = [min(layers, key=lambda layer: abs(layer.depth - d)) for d in _DEPTHS if layers]
    return list(dict.fromkeys(chosen))


def image_embedding(memory: Memory, layers: list[AttentionLayer]) -> Tensor:
    """Mean of the patches' tokens, block by block; of other networks, of the last features.

    Each token is standardised over its channels first, since a few channels of a residual stream
    are far larger than the others. Every block has the same say.

    Args:
        memory (Memory): Of the teacher, with the blocks' outputs among its taps.
        layers (list[AttentionLayer]): From :func:`embedding_layers`.

    Returns:
        Tensor: ``[B, D]`` of unit length.
    """
    parts = []
    for layer in layers:
        tokens = at_least_float32(memory.taps[layer.block])
        tokens = tokens.flatten(1, 2) if tokens.dim() == 4 else tokens
        tokens = tokens[:, layer.prefix_tokens :]
        parts.append(F.layer_norm(tokens, tokens.shape[-1:]).mean(1))
    if not layers:
        last = memory.feats[-1]
        last = at_least_float32(last if isinstance(last, Tensor) else torch.cat(list(last), -1))
        parts.append(last.flatten(2).mean(2) if last.dim() > 2 else last)
    return F.normalize(torch.cat([F.normalize(part, dim=-1) for part in parts], -1), dim=-1)


class EmbeddingMemory(nn.Module):
    """A ring of the newest embeddings and their classes; in the state.

    Args:
        size (int): How many; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f'EmbeddingMemory: size is at least 0, got {size}.')
        self.size = size
        self.register_buffer('embeddings', torch.zeros((0, 0)))
        self.register_buffer('labels', torch.zeros(0, dtype=torch.int64))

    def add(self, embeddings: Tensor, labels: Tensor | None = None) -> None:
        """Add some, and drop the oldest beyond the size.

        Args:
            embeddings (Tensor): ``[B, D]``.
            labels (Tensor, optional): Classes ``[B]``; -1 where unknown.
        """
        if labels is None:
            labels = embeddings.new_full((len(embeddings),), -1, dtype=torch.int64)
        if self.size:
            rows = torch.cat([self.rows(embeddings), embeddings.detach()])
            self.embeddings = rows[-self.size :]
            self.labels = torch.cat([self.labels.to(labels), labels])[-self.size :]

    def rows(self, like: Tensor) -> Tensor:
        """The embeddings ``[M, D]``, of the type and the width of ``like`` ``[B, D]``.

        Raises:
            ValueError: If they have another width: a checkpoint of another teacher.
        """
        if not len(self.embeddings):
            return like[:0].detach()
        if self.embeddings.shape[1] != like.shape[1]:
            raise ValueError(
                f'The checkpoint remembers embeddings of {self.embeddings.shape[1]} numbers, this '
                f'teacher gives {like.shape[1]}: resume with the teacher of the checkpoint.'
            )
        return self.embeddings.to(like)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # As many as there were: take the shapes from the checkpoint.
        for name in ('embeddings', 'labels'):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                own = getattr(self, name)
                setattr(self, name, own.new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
