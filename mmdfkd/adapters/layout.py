"""Fixed assignment of a box layout, for a two-stage detector's layout loss."""

from dataclasses import dataclass

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

# Copies of each box that its RoI loss also asks for, as (dx, dy, dw, dh) in shares of its size.
# All keep an
# IoU of at least 0.7 with it.
_JITTER = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.08, 0.05, 0.0, 0.0],
        [-0.08, 0.05, 0.0, 0.1],
        [0.05, -0.08, 0.1, 0.0],
        [0.0, 0.0, -0.12, -0.12],
    ]
)


@dataclass
class LayoutPlan:
    """What each anchor and each RoI of one image should say.

    Attributes:
        positive: Indices of anchors that belong to a box, over all levels, image-major order of
            the RPN's maps.
        matched: For each positive anchor, the index of its box.
        negative: Mask of anchors that must be background.
        rois: ``[R, 4]`` xyxy pixels: every box with its jittered copies, then background boxes.
        roi_labels: ``[R]`` class indices; the number of classes means background.
        roi_matched: For each foreground RoI, the index of its box.
    """

    positive: Tensor
    matched: Tensor
    negative: Tensor
    rois: Tensor
    roi_labels: Tensor
    roi_matched: Tensor


def jittered(boxes: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Each of ``[N, 4]`` boxes with its fixed copies, clipped: ``[N * J, 4]``, and whose."""
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = (boxes[:, 2:] + boxes[:, :2])[:, None] / 2
    jitter = _JITTER.to(boxes)[None]
    centre = centre + jitter[..., :2] * size
    size = size * (1 + jitter[..., 2:])
    out = torch.cat([centre - size / 2, centre + size / 2], -1).flatten(0, 1)
    h, w = image_size
    out = torch.stack(
        [
            out[:, 0].clamp(0, w),
            out[:, 1].clamp(0, h),
            out[:, 2].clamp(0, w),
            out[:, 3].clamp(0, h),
        ],
        -1,
    )
    return out, torch.arange(len(boxes), device=boxes.device).repeat_interleave(len(_JITTER))


def background_boxes(
    boxes: Tensor, image_size: tuple[int, int], cells: int = 4, max_iou: float = 0.2
) -> Tensor:
    """A fixed grid of boxes of two sizes that overlap no box of the layout."""
    h, w = image_size
    grid = []
    for count in (cells, cells // 2):
        xs = torch.arange(count, device=boxes.device) * (w / count)
        ys = torch.arange(count, device=boxes.device) * (h / count)
        y, x = torch.meshgrid(ys, xs, indexing='ij')
        grid.append(torch.stack([x, y, x + w / count, y + h / count], -1).flatten(0, 1))
    grid = torch.cat(grid).to(boxes)
    if len(boxes) == 0:
        return grid
    covered = bbox_overlaps(grid, boxes, mode='iof').amax(1)
    inside = bbox_overlaps(boxes, grid, mode='iof').amax(0)
    return grid[(covered < max_iou) & (inside < 0.5)]


def assign_anchors(
    boxes: Tensor, anchors: Tensor, positive_iou: float, negative_iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which anchors belong to a box, to which, and which are background.

    Args:
        boxes (Tensor): ``[N, 4]`` xyxy pixels; may be empty.
        anchors (Tensor): ``[A, 4]``, all levels.
        positive_iou (float): See :func:`plan_layout`.
        negative_iou (float): Likewise.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Indices ``[P]`` of anchors, of their boxes ``[P]``, and the
        mask ``[A]`` of background.
    """
    if len(boxes):
        iou = bbox_overlaps(anchors, boxes)
        best, owner = iou.max(1)
        is_positive = best >= positive_iou
        own_iou, own = iou.max(0)
        # Of boxes with one best anchor the one that overlaps it most gets it; one without any gets
        # none.
        for box in own_iou.argsort(stable=True).tolist():
            if own_iou[box] > 0:
                owner[own[box]] = box
                is_positive[own[box]] = True
        negative = (best < negative_iou) & ~is_positive
        positive = is_positive.nonzero(as_tuple=True)[0]
        matched = owner[positive]
    else:
        positive = matched = torch.zeros(0, dtype=torch.long, device=anchors.device)
        negative = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
    return positive, matched, negative


def plan_layout(
    boxes: Tensor,
    labels: Tensor,
    anchors: Tensor,
    image_size: tuple[int, int],
    num_classes: int,
    positive_iou: float = 0.6,
    negative_iou: float = 0.3,
) -> LayoutPlan:
    """Assign anchors and RoIs once; the layout does not move while its pixels are optimised.

    Args:
        boxes (Tensor): ``[N, 4]`` xyxy pixels; may be empty.
        labels (Tensor): ``[N]`` class indices.
        anchors (Tensor): ``[A, 4]``, all levels.
        image_size (tuple[int, int]): ``(H, W)`` pixels.
        num_classes (int): Number of foreground classes.
        positive_iou (float): Anchors above it belong to their best box, as does each box's best
            anchor.
        negative_iou (float): Anchors below it are background.
    """
    positive, matched, negative = assign_anchors(boxes, anchors, positive_iou, negative_iou)
    foreground, roi_matched = jittered(boxes, image_size)
    background = background_boxes(boxes, image_size)
    roi_labels = torch.cat([labels[roi_matched], labels.new_full((len(background),), num_classes)])
    return LayoutPlan(
        positive, matched, negative, torch.cat([foreground, background]), roi_labels, roi_matched
    )


def usual_sizes(boxes: Tensor) -> Tensor:
    """Sizes ``[K, 2]`` of boxes ``[N, 4]``, from the 5th to the 95th percentile of area."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    order = sizes.prod(1).argsort()
    cut = len(order) // 20
    return sizes[order[cut : len(order) - cut]]
