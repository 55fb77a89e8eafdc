"""Activations that are recomputed in the backward, where gradients of a few tensors are wanted.

mmdet and mmpretrain recompute by reentrant autograd, which ``torch.autograd.grad`` refuses.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# Their names for the switch; the second is TinyViT's and MixMIM's.
_SWITCHES = ('with_cp', 'use_checkpoint')


def recomputing(*nets: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules that recompute by reentrant autograd, and the name of their switch, which is on."""
    # Modules of this project recompute without it: they spare memory in every backward.
    return [
        (module, name)
        for net in nets
        for module in net.modules()
        if not type(module).__module__.startswith('mmdfkd.')
        for name in _SWITCHES
        if vars(module).get(name)
    ]


def stop_recomputing(net: nn.Module) -> None:
    """Switch it off for good, as in a network that is never trained."""
    for module, name in recomputing(net):
        setattr(module, name, False)


@contextmanager
def without_recomputing(*nets: nn.Module) -> Iterator[None]:
    """Switch it off while the context is open; what was there is restored exactly.

    The values and gradients of the networks are the same, they only take more memory.

    Args:
        *nets (nn.Module): The networks.
    """
    before = [(module, name, getattr(module, name)) for module, name in recomputing(*nets)]
    try:
        for module, name, _ in before:
            setattr(module, name, False)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
