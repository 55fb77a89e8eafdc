from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

_INPUT = ':input'


@contextmanager
def tapped(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of named modules while the context is open; the hooks go with it.

    Args:
        net (nn.Module): The network.
        names (Sequence[str]): Dotted module names, such as ``backbone.blocks.3``; with ``:input``
            behind it, what enters the module (its first positional argument) instead.

    Yields:
        dict[str, Tensor]: Filled by the forward.

    Raises:
        KeyError: If a name is no module of the network.
    """
    modules = dict(net.named_modules())
    caught: dict[str, Tensor] = {}
    handles = []
    try:
        for key in names:
            name = key.removesuffix(_INPUT)
            if name not in modules:
                raise KeyError(
                    f"{type(net).__name__} has no module '{name}' to tap; {_nearest(name, modules)}"
                )
            module = modules[name]
            if name == key:
                hook = module.register_forward_hook(
                    lambda _m, _i, out, key=key: caught.__setitem__(key, out)
                )
            else:
                hook = module.register_forward_pre_hook(
                    lambda _m, args, key=key: caught.__setitem__(key, args[0])
                )
            handles.append(hook)
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _nearest(name: str, modules: Mapping[str, nn.Module]) -> str:
    """What may have been meant: modules of that last name, or what the next larger one holds."""
    last = name.rpartition('.')[2]
    alike = [n for n in modules if n and n.rpartition('.')[2] == last]
    # A number is everywhere; that of a block says something in its own list alone.
    if alike and not last.isdigit():
        return f'of that last name: {alike[:8]}.'
    parent = name
    while parent not in modules:
        parent = parent.rpartition('.')[0]
    missing = name[len(parent) :].lstrip('.').partition('.')[0]
    inner = [n for n, _ in modules[parent].named_children()]
    if inner and missing.isdigit() and inner[-1].isdigit():
        return f"'{parent}' has {inner[0]} to {inner[-1]}."
    return f"'{parent or 'it'}' has no '{missing}', but {inner[:12]}."
