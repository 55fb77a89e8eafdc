"""Fixed assignment of a box layout to places without anchors, for a layout loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Distance from a box's centre, in strides of the level, within which a place answers for it (centre
# sampling of FCOS).
_RADIUS = 1.5
# Edge of the boxes that a level is for, in its strides, where the network does not say.
_USUAL_EDGE = 8.0


@dataclass
class PlacePlan:
    """What each place of one image should say.

    Attributes:
        positive: Indices ``[P]`` of places that belong to a box, over all levels.
        matched: For each of them, the index of its box.
        negative: Mask ``[N]`` of places that must be background.
    """

    positive: Tensor
    matched: Tensor
    negative: Tensor


def plan_places(
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    ranges: Tensor | None = None,
) -> PlacePlan:
    """Assign places once; the layout does not move while its pixels are optimised.

    A box belongs to one level, that of its size, and there to the places that are near its centre
    and inside it; to the nearest place, where there is none. A place within reach of two boxes
    belongs to the smaller. Places inside a box that do not belong to one are asked nothing: what
    they answer differs from network to network.

    Args:
        boxes (Tensor): ``[N, 4]`` xyxy pixels; may be empty.
        points (Tensor): ``[P, 2]``, all levels.
        strides (Tensor): ``[P]`` pixels, each point's.
        ranges (Tensor, optional): ``[P, 2]`` pixels: the farthest side of a box that a point's
            level is for (FCOS). Otherwise the level whose eight strides are nearest to the box's
            edge.
    """
    free = torch.ones(len(points), dtype=torch.bool, device=points.device)
    if not len(boxes):
        none = torch.zeros(0, dtype=torch.long, device=points.device)
        return PlacePlan(none, none, free)
    owner = torch.full((len(points),), -1, dtype=torch.long, device=points.device)
    sizes = boxes[:, 2:] - boxes[:, :2]
    nearest = []
    # The largest first: a smaller one takes what it needs.
    order = sizes.prod(1).argsort(descending=True, stable=True).tolist()
    for i in order:
        low, high = boxes[i, :2], boxes[i, 2:]
        inside = ((points >= low) & (points <= high)).all(1)
        free &= ~inside
        apart = points - (low + high) / 2
        if ranges is None:
            edge = sizes[i].clamp_min(1).prod().sqrt()
            gap = (edge / (_USUAL_EDGE * strides)).log2().abs()
        else:
            far = sizes[i].amax() / 2
            gap = (ranges[:, 0] - far).clamp_min(0) + (far - ranges[:, 1]).clamp_min(0)
        level = gap <= gap.amin() + 1e-6
        near = apart.abs().amax(1) < _RADIUS * strides
        owner[level & near & inside] = i
        distance = apart.square().sum(1).masked_fill(~level, float('inf'))
        nearest.append(int(distance.argmin()))
    for i, place in zip(order, nearest, strict=True):
        # Not taken from a smaller box, unless this one has nothing else.
        if not (owner == i).any():
            owner[place] = i
    positive = (owner >= 0).nonzero(as_tuple=True)[0]
    free[positive] = False
    return PlacePlan(positive, owner[positive], free)
