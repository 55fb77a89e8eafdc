"""Box layouts from the teacher itself: its own proposals, with the classes that are wanted."""

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Probe, Targets


def proposed_layout(
    probe: Probe,
    logits: Tensor,
    labels: Tensor,
    sure: float = 0.3,
    most: int = 8,
    max_iou: float = 0.3,
) -> Targets:
    """One box of the class wanted of each image, and the boxes of what the teacher already sees.

    The wanted class goes to the proposal that the teacher finds most like it. The rest keeps the
    teacher's own class, so that the layout asks for what a few steps can reach, and nothing that is
    seen has to vanish.

    Args:
        probe (Probe): The teacher's proposals.
        logits (Tensor): The teacher's class logits there, background last, ``[sum K_i, classes +
            1]``.
        labels (Tensor): The class wanted of each image, ``[B]``.
        sure (float): Least probability of what counts as already seen.
        most (int): Most boxes an image.
        max_iou (float): Boxes of one image overlap at most by it.

    Returns:
        Targets: ``boxes`` and ``box_labels``; empty for an image without proposals.
    """
    boxes, box_labels = [], []
    rows = logits.softmax(-1)[:, :-1].split([len(b) for b in probe.boxes])
    for candidates, row, label in zip(probe.boxes, rows, labels.tolist(), strict=True):
        if not len(candidates):
            boxes.append(candidates.reshape(0, 4))
            box_labels.append(labels.new_zeros(0))
            continue
        seen, kind = row.max(1)
        first = int(row[:, label].argmax())
        chosen, kinds = [first], [label]
        free = bbox_overlaps(candidates, candidates[first : first + 1])[:, 0] <= max_iou
        for i in seen.argsort(descending=True).tolist():
            if seen[i] < sure or len(chosen) >= most:
                break
            if free[i]:
                chosen.append(i)
                kinds.append(int(kind[i]))
                free &= bbox_overlaps(candidates, candidates[i : i + 1])[:, 0] <= max_iou
        boxes.append(candidates[chosen])
        box_labels.append(torch.tensor(kinds, device=labels.device))
    return Targets(boxes=boxes, box_labels=box_labels)


@torch.no_grad()
def wanted_targets(
    images: Tensor, labels: Tensor, teacher: Adapter
) -> tuple[Targets, Probe | None]:
    """What start images are to show, and where the networks are asked meanwhile.

    Args:
        images (Tensor): ``[B, 3, H, W]`` in [0, 1].
        labels (Tensor): The class wanted of each, ``[B]``.
        teacher (Adapter): The teacher.

    Returns:
        tuple[Targets, Probe | None]: Of a classifier the labels and None; of a detector layouts at
            its own proposals, and these.
    """
    if not teacher.detects:
        return Targets(labels=labels), None
    memory = teacher.encode(images)
    probe = teacher.propose(memory)
    return proposed_layout(probe, teacher.answer(memory, probe).logits, labels), probe
