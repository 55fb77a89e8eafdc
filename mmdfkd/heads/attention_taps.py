from torch import nn


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
    modules = dict(net.named_modules())
    found = getattr(modules.get(tap.rpartition('.')[0]), 'num_heads', None)
    if tap not in modules or not isinstance(found, int):
        names = [name for name in modules if name.endswith('qkv')]
        raise ValueError(
            f"'{tap}' of the {who} is no qkv layer of an attention with num_heads; such layers "
            f'are {names[:8] or "not in this network at all: it has no such attention"}.'
        )
    return found
