"""The RoI heads of a two-stage detector: one, or the stages of a cascade."""

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads import CascadeRoIHead, DoubleHeadRoIHead, StandardRoIHead
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn


def _runs_as(roi_head: nn.Module, base: type, names: Sequence[str]) -> bool:
    return isinstance(roi_head, base) and all(
        getattr(type(roi_head), name) is getattr(base, name) for name in names
    )


def _answers_once(head: nn.Module) -> bool:
    """Whether a box head gives a RoI one row of classes and of deltas; SABL's has buckets."""
    return hasattr(head, 'fc_cls') and hasattr(head, 'fc_reg')


def _scores_by_softmax(head: nn.Module) -> bool:
    """Whether class scores are a softmax over the classes and a background.

    mmdet's heads take it for every loss that does not bring channels or an activation of its own,
    ``use_sigmoid`` or not; of those that do, one may be a softmax, too.
    """
    loss = getattr(head, 'loss_cls', None)
    custom = any(getattr(loss, f'custom_{what}', False) for what in ('cls_channels', 'activation'))
    return not custom or (type(loss).__name__ == 'CrossEntropyCustomLoss' and not loss.use_sigmoid)


def runs_cascade(roi_head: nn.Module) -> bool:
    """Whether stages are run as Cascade R-CNN runs them; HTC and Sparse R-CNN run theirs else."""
    same = _runs_as(roi_head, CascadeRoIHead, ('_bbox_forward', '_mask_forward'))
    return same and all(_answers_once(head) for head in roi_head.bbox_head)


def runs_single(roi_head: nn.Module) -> bool:
    """Whether the one box head is run as Faster R-CNN's, or Double-Head R-CNN's, is.

    Not so CrowdDet's, which sees two objects in a RoI, Grid R-CNN's, whose boxes another head
    gives, and TridentNet's, of three branches.
    """
    names = ('_bbox_forward', '_mask_forward', 'predict', 'predict_bbox')
    bases = StandardRoIHead, DoubleHeadRoIHead
    same = any(_runs_as(roi_head, base, names) for base in bases)
    return same and roi_head.with_bbox and _answers_once(roi_head.bbox_head)


class RoIStages:
    """One box head, and mask head, for each stage; stateless around mmdet's RoI head.

    Args:
        roi_head (nn.Module): A ``StandardRoIHead`` or a ``CascadeRoIHead``.

    Raises:
        ValueError: If the class scores of a stage are no softmax over classes and a background.
    """

    def __init__(self, roi_head: nn.Module) -> None:
        self.roi_head = roi_head
        self.cascade = isinstance(roi_head.bbox_head, nn.ModuleList)
        for stage, head in enumerate(self.heads):
            # They would be misread in silence: the last of them is taken for the background.
            if not _scores_by_softmax(head):
                loss = head.loss_cls
                sigmoid = ' with use_sigmoid=True' if getattr(loss, 'use_sigmoid', False) else ''
                where = f' of stage {stage}' if self.cascade else ''
                raise ValueError(
                    f'The {type(head).__name__}{where} has {type(loss).__name__}{sigmoid} as its '
                    'loss_cls, whose class scores are not read here. Supported is a softmax over '
                    'the classes and a background: CrossEntropyLoss with use_sigmoid=False, and '
                    'any loss without channels or an activation of its own (custom_cls_channels, '
                    'custom_activation).'
                )

    @property
    def heads(self) -> list[nn.Module]:
        """The box head of each stage."""
        return list(self.roi_head.bbox_head) if self.cascade else [self.roi_head.bbox_head]

    def outputs(self, stage: int, feats: tuple, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits and deltas of a stage at boxes of each image, in one row after the other."""
        rois = bbox2roi(list(boxes))
        which = (stage,) if self.cascade else ()
        found = self.roi_head._bbox_forward(*which, feats, rois)
        return found['cls_score'], found['bbox_pred']

    def masks(self, feats: tuple, boxes: Sequence[Tensor]) -> list[Tensor]:
        """Mask logits of each stage at the same boxes, ``[sum K_i, classes, h, w]`` each.

        Raises:
            ValueError: If there is no mask head.
        """
        if not self.roi_head.with_mask:
            raise ValueError(f'{type(self.roi_head).__name__} has no mask head.')
        rois = bbox2roi(list(boxes))
        stages = range(len(self.heads)) if self.cascade else [None]
        return [
            self.roi_head._mask_forward(*(() if stage is None else (stage,)), feats, rois)[
                'mask_preds'
            ]
            for stage in stages
        ]

    @torch.no_grad()
    def refine(
        self,
        stage: int,
        boxes: Sequence[Tensor],
        logits: Tensor,
        deltas: Tensor,
        image_size: tuple[int, int],
    ) -> list[Tensor]:
        """Where a stage moves its boxes, for the next one: by its surest class, inside the image.

        Returns:
            list[Tensor]: As many boxes of each image as there were.
        """
        head = self.heads[stage]
        counts = [len(own) for own in boxes]
        if head.custom_activation:
            logits = head.loss_cls.get_activation(logits)
        moved = []
        for own, cls, reg in zip(boxes, logits.split(counts), deltas.split(counts), strict=True):
            if len(own):
                label = cls[:, :-1].argmax(1)
                own = head.regress_by_class(own, label, reg, dict(img_shape=image_size))
            moved.append(own)
        return moved

    def run(
        self,
        feats: tuple,
        boxes: Sequence[Tensor],
        image_size: tuple[int, int],
        moved: Sequence[Sequence[Tensor]] = (),
    ) -> tuple[list[tuple[Tensor, Tensor]], list[list[Tensor]]]:
        """All stages, one after the other.

        Args:
            feats (tuple): The pyramid.
            boxes (Sequence[Tensor]): Per image ``[K_i, 4]``, xyxy pixels, of the first stage.
            image_size (tuple[int, int]): ``(H, W)`` pixels.
            moved (Sequence[Sequence[Tensor]]): Boxes of later stages, for as many as there are:
                where another network moved them. Otherwise it moves them itself.

        Returns:
            tuple: Logits and deltas of each stage, and the boxes of each stage.
        """
        places, found = [list(boxes)], []
        for stage in range(len(self.heads)):
            found.append(self.outputs(stage, feats, places[stage]))
            if stage + 1 < len(self.heads):
                given = stage < len(moved)
                places.append(
                    list(moved[stage])
                    if given
                    else self.refine(stage, places[stage], *found[stage], image_size)
                )
        return found, places
