from collections.abc import Sequence

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor


class LabelGrowth:
    """Lets the teacher's own detections add objects to a layout, and drop what never appeared.

    An image that is optimised for some objects shows others on its way (DIODE, Chawla et al., WACV
    2021, "false positive sampling", adds them); what the teacher does not come to see at all is not
    worth forcing (adaptive label sampling of DFQ-toolkit, ICCV 2025, removes it).

    Args:
        sure (float): Least score of a detection that is added.
        free_iou (float): It overlaps no present box by more.
        seen (float): Least score of a detection that keeps a present box.
        seen_iou (float): Least overlap with it.
        least_size (float): Least side of an added box in pixels.
        largest (float): Largest area of an added box, as a share of the image.
        most (int): Most boxes of an image.
    """

    def __init__(
        self,
        sure: float = 0.5,
        free_iou: float = 0.3,
        seen: float = 0.1,
        seen_iou: float = 0.35,
        least_size: float = 0.0,
        largest: float = 0.85,
        most: int = 12,
    ) -> None:
        self.sure = sure
        self.free_iou = free_iou
        self.seen = seen
        self.seen_iou = seen_iou
        self.least_size = least_size
        self.largest = largest
        self.most = most

    def __call__(
        self,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        detections: Sequence[InstanceData],
        image_size: tuple[int, int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The revised layouts.

        Args:
            boxes (Sequence[Tensor]): Per image ``[N, 4]`` xyxy pixels; at least one always stays,
                the one seen best.
            labels (Sequence[Tensor]): Their classes.
            detections (Sequence[InstanceData]): The teacher's, after suppression.
            image_size (tuple[int, int]): Height and width.

        Returns:
            tuple[list[Tensor], list[Tensor]]: Boxes and labels.
        """
        pairs = [
            self._revise(own, kinds, found, image_size)
            for own, kinds, found in zip(boxes, labels, detections, strict=True)
        ]
        return [box for box, _ in pairs], [label for _, label in pairs]

    def _revise(
        self, boxes: Tensor, labels: Tensor, found: InstanceData, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        visible = found.scores >= self.seen
        if len(boxes) and visible.any():
            overlap = bbox_overlaps(boxes, found.bboxes[visible])
            kept = (overlap >= self.seen_iou).any(1)
            kept[overlap.amax(1).argmax()] = True
            boxes, labels = boxes[kept], labels[kept]
        elif len(boxes):
            # Nothing is seen at all: too early to say which of them will be.
            return boxes, labels
        sides = found.bboxes[:, 2:] - found.bboxes[:, :2]
        fit = (sides.amin(1) >= self.least_size) & (
            sides.prod(1) <= self.largest * size[0] * size[1]
        )
        for i in ((found.scores >= self.sure) & fit).nonzero()[:, 0].tolist():
            if len(boxes) >= self.most:
                break
            box = found.bboxes[i : i + 1].to(boxes)
            if not len(boxes) or bbox_overlaps(box, boxes).max() <= self.free_iou:
                boxes = torch.cat([boxes, box])
                labels = torch.cat([labels, found.labels[i : i + 1].to(labels)])
        return boxes, labels
