from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mmdfkd.utils.recompute import without_recomputing


@contextmanager
def frozen(*nets: nn.Module) -> Iterator[None]:
    """Hold networks still: evaluation mode and no parameter gradients; both restored exactly.

    Gradients flow through the networks to their inputs and nowhere else: nothing is added to any
    ``.grad``, and the backward pass computes no weight gradients (a third of its cost). Nor are
    activations recomputed (``with_cp``) where gradients of the inputs alone could not be had.

    Args:
        *nets (nn.Module): The networks; frozen ones among them stay as they are.
    """
    modes = [(module, module.training) for net in nets for module in net.modules()]
    wants = [(parameter, parameter.requires_grad) for net in nets for parameter in net.parameters()]
    try:
        for net in nets:
            # Module by module: `train` may be overridden with side effects (frozen stages, frozen
            # norms).
            for module in net.modules():
                module.training = False
        for parameter, _ in wants:
            parameter.requires_grad_(False)
        with without_recomputing(*nets):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, wanted in wants:
            parameter.requires_grad_(wanted)
