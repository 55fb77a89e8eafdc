"""What making images costs in passes through a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn

from .priors.parts import attention_layers, patch_size

_PAUSED = ContextVar('paused', default=False)


@dataclass
class PassCount:
    """Passes of single images through a network.

    Attributes:
        forward: Without gradient.
        steps: With gradient to the pixels or what made them.
        dense: All of them, each counted by the share of the full image that it saw: of its tokens
            where the network is a plain transformer, of its pixels elsewhere.
        work: As ``dense``, those with gradient twice: they go forwards and backwards.
    """

    forward: int = 0
    steps: int = 0
    dense: float = 0.0
    work: float = 0.0

    @property
    def total(self) -> int:
        """All passes, of whatever size."""
        return self.forward + self.steps


@contextmanager
def uncounted() -> Iterator[None]:
    """Passes in this context count nowhere: who only watches a run takes nothing of its budget."""
    token = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(token)


@contextmanager
def counted(net: nn.Module, size: tuple[int, int]) -> Iterator[PassCount]:
    """Count the passes through a network's backbone while the context is open.

    Those within :func:`uncounted` do not count.

    Args:
        net (nn.Module): The network.
        size (tuple[int, int]): Height and width of a full image in pixels.

    Yields:
        PassCount: Counts as it goes.
    """
    count = PassCount()
    layers, patch = attention_layers(net), patch_size(net)
    tokens = 0
    if layers and layers[0].prefix_tokens and patch is not None:
        tokens = layers[0].prefix_tokens + (size[0] // patch[0]) * (size[1] // patch[1])

    def seen(inputs: torch.Tensor, share: float) -> None:
        if _PAUSED.get():
            return
        count.dense += len(inputs) * share
        with_gradient = torch.is_grad_enabled() and inputs.requires_grad
        count.work += len(inputs) * share * (2 if with_gradient else 1)

    def whole(_: nn.Module, args: tuple, __) -> None:
        images = args[0]
        if _PAUSED.get():
            return
        if torch.is_grad_enabled() and images.requires_grad:
            count.steps += len(images)
        else:
            count.forward += len(images)
        if not tokens:
            seen(images, images[0, 0].numel() / (size[0] * size[1]))

    def block(_: nn.Module, args: tuple, __) -> None:
        seen(args[0], args[0].shape[1] / tokens)

    # A network of timm is never called as a whole; its first convolution sees the images.
    stem = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), net)
    handles = [getattr(net, 'backbone', stem).register_forward_hook(whole)]
    if tokens:
        handles.append(net.get_submodule(layers[0].block).register_forward_hook(block))
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
