from collections.abc import Iterator

from torch import nn

# What an attention of known libraries has where it is no softmax(q k^T / sqrt(d)) plus a bias.
_OTHERWISE = {
    ('proj_l', 'proj_w'): 'mixes its heads (talking heads)',
    ('mix_logits', 'mix_attention'): 'mixes its heads (MiniViT)',
    ('q_norm', 'k_norm'): 'normalises its queries and keys',
    ('logit_scale', 'temperature'): 'scales cosines of its queries and keys by what it learned',
    ('rope',): 'rotates its queries and keys by their places',
}


def _attentions(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Its ``qkv`` layers by name, each with the attention that holds it."""
    modules = dict(net.named_modules())
    for name in modules:
        holder, _, own = name.rpartition('.')
        if own.endswith('qkv') and isinstance(getattr(modules[holder], 'num_heads', None), int):
            yield name, modules[holder]


def attention_heads(net: nn.Module, tap: str, who: str) -> int:
    """Number of heads of the attention around a tapped ``qkv`` layer.

    Args:
        net (nn.Module): The network.
        tap (str): Name of the layer, such as ``backbone.layers.3.attn.qkv``.
        who (str): Whose network, for the message.

    Returns:
        int: ``num_heads`` of the module that holds it.

    Raises:
        ValueError: If there is no such layer, or no attention around it; names those there are.
    """
    found = dict(_attentions(net))
    if tap not in found:
        raise ValueError(
            f"'{tap}' of the {who} is no qkv layer of an attention with num_heads; such layers "
            f'are {list(found)[:8] or "not in this network at all: it has no such attention"}.'
        )
    return found[tap].num_heads


def attention_index(net: nn.Module, tap: str) -> int:
    """Number of a tapped ``qkv`` layer among those of its network, in order, from 0.

    For the backbones that inheritance knows it is the number of the block.
    """
    return [name for name, _ in _attentions(net)].index(tap)


def require_plain_attention(net: nn.Module, tap: str, who: str) -> None:
    """Insist that ``softmax(q k^T / sqrt(d))`` of a tapped ``qkv`` layer is what its network uses.

    Args:
        net (nn.Module): The network.
        tap (str): Name of the layer; one without attention around it passes.
        who (str): Whose network, for the message.

    Raises:
        ValueError: If its attention mixes heads, normalises or rotates queries and keys, or learns
            their scale; names what it has.
    """
    attention = dict(_attentions(net)).get(tap)
    for names, does in _OTHERWISE.items():
        found = [n for n in names if not _passes(getattr(attention, n, None))]
        if found:
            raise ValueError(
                f"The attention around '{tap}' of the {who} ({type(attention).__name__}) {does}: "
                f"it has {' and '.join(found)}. What would be recomputed, softmax(q k' / sqrt(d)) "
                'of the qkv layer, is not what it attends to. QKVRelationHead compares queries, '
                'keys and values as they are, ProbeHead needs no attention.'
            )


def _passes(part: object) -> bool:
    return part is None or isinstance(part, nn.Identity)
