"""Gradient steps of a network that nobody else trains."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn


class BothOptimizers:
    """Two optimisers that step together."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        """Step each."""
        for optimizer in self.optimizers:
            optimizer.step()


@contextmanager
def training(net: nn.Module) -> Iterator[None]:
    """Training mode and gradients, for as long as it is trained; then as before."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        for module, _ in modes:
            module.training = True
        net.requires_grad_(True)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        net.requires_grad_(False)


def keep_best(best: tuple | None, images: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The least value met for each image, and the image: copies, since the next step goes on."""
    values, images = values.detach().clone(), images.detach().clone()
    if best is None:
        return values, images
    better = values < best[0]
    return (
        torch.where(better, values, best[0]),
        torch.where(better[:, None, None, None], images, best[1]),
    )


def averaged(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The mean over all processes, in one message."""
    if get_world_size() == 1:
        return list(gradients)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    all_reduce(flat, 'mean')
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]


def summed(total: list[Tensor] | None, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of several steps added up, from None on."""
    if total is None:
        return [gradient.clone() for gradient in gradients]
    return [a + b for a, b in zip(total, gradients, strict=True)]


def take_step(
    optimizer: torch.optim.Optimizer | BothOptimizers,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> None:
    """One step with these gradients; none is left behind."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
