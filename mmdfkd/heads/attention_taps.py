from collections.abc import Iterator

from torch import nn


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
