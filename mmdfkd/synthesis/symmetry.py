"""Which flips and turns of its images a teacher takes for the same: a property of its classes."""

from collections.abc import Callable, Sequence

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.dist import all_reduce, get_world_size
from mmengine.structures import InstanceData
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets

from .frozen import frozen

SYMMETRIES = ('horizontal', 'vertical', 'turn')
"""Mirrored left to right, mirrored upside down, axes exchanged (with the two: a quarter turn)."""

ASKED = 96
"""Images that a source asks its teacher about, mirrored and turned."""


def detected(
    boxes: Tensor, labels: Tensor, found: InstanceData, least: float = 0.3, iou: float = 0.5
) -> Tensor:
    """Which boxes some detection of their class covers.

    Args:
        boxes (Tensor): ``[N, 4]`` xyxy pixels.
        labels (Tensor): Their classes, ``[N]``.
        found (InstanceData): Detections of the image.
        least (float): Least score of a detection that counts.
        iou (float): Least overlap.

    Returns:
        Tensor: ``[N]`` bool.
    """
    sure = found.scores >= least
    if not len(boxes) or not sure.any():
        return boxes.new_zeros(len(boxes), dtype=torch.bool)
    covers = bbox_overlaps(boxes, found.bboxes[sure]) >= iou
    return (covers & (labels[:, None] == found.labels[sure].to(labels))).any(1)


def _horizontal(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    width = image.shape[-1]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], -1)


def _vertical(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    height = image.shape[-2]
    return image.flip(-2), torch.stack([x1, height - y2, x2, height - y1], -1)


def _turn(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    return image.transpose(-1, -2), boxes[..., [1, 0, 3, 2]]


_MAPS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    'horizontal': _horizontal,
    'vertical': _vertical,
    'turn': _turn,
}


@torch.no_grad()
def held_symmetries(
    teacher: Adapter, images: Tensor, targets: Targets, batch: int = 16
) -> dict[str, float]:
    """How much of what the teacher sees is still there when the images are flipped or turned.

    A digit is another one in the mirror, a blood cell is not, and the teacher knows: for a detector
    it is the share of the objects it detects that it detects in the mapped image, too, for a
    classifier the share of the images whose class remains. Over all processes together.

    Args:
        teacher (Adapter): The teacher.
        images (Tensor): ``[B, 3, H, W]`` in [0, 1] that show its classes, such as inverted ones.
        targets (Targets): Their boxes; without any, a classifier's own answer counts.
        batch (int): Images looked at once.

    Returns:
        dict[str, float]: For each of :data:`SYMMETRIES` a share from 0 to 1: 1 where the teacher
            sees nothing at all, so nothing contradicts; ``turn`` is 0 where images are not square.
    """
    names = [name for name in SYMMETRIES if name != 'turn' or images.shape[-1] == images.shape[-2]]
    counts = torch.zeros(1 + len(SYMMETRIES))
    with frozen(teacher.net):
        for first in range(0, len(images), batch):
            part = slice(first, first + batch)
            seen = _seen(teacher, images[part], targets, part, None)
            counts[0] += (seen > 0).sum()
            for name in names:
                again = _seen(teacher, images[part], targets, part, _MAPS[name])
                counts[1 + SYMMETRIES.index(name)] += (seen == again).logical_and(seen > 0).sum()
    if get_world_size() > 1:
        all_reduce(counts)
    total, *kept = counts.tolist()
    return {
        name: (value / total if total else 1.0) if name in names else 0.0
        for name, value in zip(SYMMETRIES, kept, strict=True)
    }


def _seen(
    teacher: Adapter, images: Tensor, targets: Targets, part: slice, change: Callable | None
) -> Tensor:
    """What the teacher sees in changed images: a number for each object or image, 0 for nothing."""
    none = images.new_zeros((0, 4))
    boxes: Sequence[Tensor] = [none] * len(images) if targets.boxes is None else targets.boxes[part]
    if change is not None:
        pairs = [change(image, own) for image, own in zip(images, boxes, strict=True)]
        images = torch.stack([image for image, _ in pairs])
        boxes = [own for _, own in pairs]
    memory = teacher.encode(images)
    if not teacher.detects:
        return teacher.class_votes(memory).argmax(1).cpu() + 1
    detections = teacher.detect(memory)
    found = zip(boxes, targets.box_labels[part], detections, strict=True)
    return torch.cat([detected(own, labels, seen) for own, labels, seen in found]).long().cpu()
