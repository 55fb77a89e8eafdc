from collections.abc import Iterator, Sequence
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
                near = [n for n in modules if n.split('.')[-1] == name.split('.')[-1]][:8]
                raise KeyError(
                    f"{type(net).__name__} has no module '{name}' to tap; of that last name: "
                    f'{near}.'
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
