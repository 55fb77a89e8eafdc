"""The weighted mean that every loss here ends with."""

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """Halves in float32, since sums of squares overflow or round off there; others as they are."""
    return x.float() if x.dtype in _HALF else x


def weighted_mean(values: Tensor, weight: Tensor | None = None, floor: float = 0.0) -> Tensor:
    """A mean, whatever batch and resolution: ``sum(w * v) / max(sum(w), floor * numel(v))``.

    Args:
        values (Tensor): Any shape.
        weight (Tensor, optional): Non-negative, of the shape of ``values`` or broadcast to it; a
            constant of the optimisation. None gives the plain mean.
        floor (float): Mean weight below which the result fades out instead of being normalised,
            so that a batch of vanishing weights is not blown up. Defaults to 0.

    Returns:
        Tensor: Scalar. Without values, or where all weights are zero, 0 times the sum of values:
        the graph stays, and every parameter behind it gets a gradient of zero.
    """
    if weight is None:
        return values.mean() if values.numel() else values.sum()
    weight = weight.detach().to(values).expand_as(values)
    total = weight.sum().clamp_min(max(floor * values.numel(), torch.finfo(values.dtype).eps))
    return (weight * values).sum() / total
