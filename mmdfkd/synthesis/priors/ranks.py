"""What batch-level terms take from the other processes."""

import torch
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import Tensor


def summed_over_ranks(own: Tensor) -> Tensor:
    """The sum over all processes, with gradient to the own part.

    A term of such a sum says the same on every process, and each process gets the gradient of its
    own images. That gradient is taken times the number of processes, as if every process had passed
    its own on to the others: a mean over ``W`` processes has ``1 / W`` of the gradient of a mean
    over one.

    Args:
        own (Tensor): Of the same shape on all processes; sums and counts, so that the numbers of
            images may differ.

    Returns:
        Tensor: The same shape; ``own`` itself where there is one process.
    """
    world = get_world_size()
    if world == 1:
        return own
    total = own.detach().clone()
    all_reduce(total)
    return total + world * (own - own.detach())


@torch.no_grad()
def gathered(own: Tensor) -> Tensor:
    """The rows of all processes in the order of ranks, without gradient.

    Args:
        own (Tensor): ``[B, ...]``, of the same shape on all processes.

    Returns:
        Tensor: ``[W * B, ...]``.
    """
    own = own.detach()
    return own if get_world_size() == 1 else torch.cat(all_gather(own.contiguous()))


@torch.no_grad()
def of_other_ranks(own: Tensor) -> Tensor:
    """The rows of the other processes, without gradient.

    Args:
        own (Tensor): ``[B, ...]``, of the same shape on all processes.

    Returns:
        Tensor: ``[(W - 1) * B, ...]``.
    """
    parts = gathered(own).split(max(len(own), 1))
    rank = get_rank()
    return torch.cat([own[:0].detach(), *parts[:rank], *parts[rank + 1 :]])
