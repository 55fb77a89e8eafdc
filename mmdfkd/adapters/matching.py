"""DETR's set prediction: which query is meant by which box, and how far it is from it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps, bbox_xyxy_to_cxcywh
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

# Weights of the matching cost of all published configs, which heads built for testing do not keep.
_COST_BOX, _COST_GIOU = 5.0, 2.0
_COST_CLASS = {True: 2.0, False: 1.0}
_GIOU_EPS = 1e-6
# Pairs from which on an assignment takes longer than starting a thread.
_LARGE = 100


def place_cost(boxes: Tensor, wanted: Tensor, image_size: tuple[int, int]) -> Tensor:
    """How far boxes are from those wanted: ``5 L1 - 2 GIoU`` (Carion et al., ECCV 2020, eq. 2).

    Args:
        boxes (Tensor): ``(cx, cy, w, h)`` in shares of the image, ``[Q, 4]``.
        wanted (Tensor): The same of the boxes wanted, ``[N, 4]``.
        image_size (tuple[int, int]): ``(H, W)`` pixels.

    Returns:
        Tensor: ``[Q, N]``.
    """
    h, w = image_size
    scale = boxes.new_tensor([w, h, w, h])
    giou = bbox_overlaps(
        bbox_cxcywh_to_xyxy(boxes) * scale, bbox_cxcywh_to_xyxy(wanted) * scale, mode='giou'
    )
    return _COST_BOX * torch.cdist(boxes, wanted, p=1) - _COST_GIOU * giou


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one assignment of least cost.

    Args:
        cost (Tensor): ``[Q, N]``.

    Returns:
        tuple[Tensor, Tensor]: Rows and columns, ``min(Q, N)`` each, columns rising.

    Raises:
        FloatingPointError: If a cost is not finite.
    """
    if not torch.isfinite(cost).all():
        raise FloatingPointError(
            'DETR matching: a class score or a box of the network is not finite.'
        )
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    rows, columns = (torch.from_numpy(x).to(cost.device) for x in (rows, columns))
    order = columns.argsort()
    return rows[order], columns[order]


def assign_all(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Many one-to-one assignments of least cost, with one transfer from and to the device.

    Large ones are solved side by side, on as many threads as PyTorch has: SciPy's solver is single,
    but leaves the interpreter free.

    Args:
        cost (Tensor): ``[N, Q, P]``.

    Returns:
        tuple[Tensor, Tensor]: Rows and columns, ``[N, min(Q, P)]`` each, columns rising.

    Raises:
        FloatingPointError: If a cost is not finite.
    """
    host = cost.detach().float().cpu()
    if not torch.isfinite(host).all():
        raise FloatingPointError(
            'DETR matching: a class score or a box of the network is not finite.'
        )
    count = min(cost.shape[1:])
    found = np.zeros((2, len(cost), count), np.int64)
    threads = torch.get_num_threads() if count >= _LARGE else 1
    with ThreadPoolExecutor(max(1, min(threads, len(cost)))) as pool:
        solved = pool.map(linear_sum_assignment, host.numpy())
        for i, (rows, columns) in enumerate(solved):
            order = columns.argsort()
            found[:, i] = rows[order], columns[order]
    rows, columns = torch.from_numpy(found).to(cost.device)
    return rows, columns


@dataclass(frozen=True)
class SetCriterion:
    """The losses of a DETR head at one image and one decoder layer.

    Attributes:
        sigmoid: Focal loss of one sigmoid a class, or cross-entropy with a background class.
        cls_weight: Weight of the class loss.
        l1_weight: Weight of the L1 distance of boxes.
        giou_weight: Weight of ``1 - GIoU``.
        alpha: Focal loss: weight of the positive side.
        gamma: Focal loss: exponent.
        class_weight: Cross-entropy: weight of each class and of the background, or None.
    """

    sigmoid: bool
    cls_weight: float
    l1_weight: float
    giou_weight: float
    alpha: float = 0.25
    gamma: float = 2.0
    class_weight: Tensor | None = None

    @classmethod
    def of_head(cls, head: nn.Module) -> 'SetCriterion':
        """With the weights of an mmdet ``DETRHead``."""
        loss = head.loss_cls
        weight = getattr(loss, 'class_weight', None)
        return cls(
            sigmoid=bool(loss.use_sigmoid),
            cls_weight=float(loss.loss_weight),
            l1_weight=float(head.loss_bbox.loss_weight),
            giou_weight=float(head.loss_iou.loss_weight),
            alpha=float(getattr(loss, 'alpha', 0.25)),
            gamma=float(getattr(loss, 'gamma', 2.0)),
            class_weight=None if weight is None else torch.as_tensor(weight, dtype=torch.float32),
        )

    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cost ``[Q, N]`` of giving query ``q`` the class of box ``n``, as mmdet's costs.

        Softmax: ``-p``. Sigmoid: the focal loss of saying yes less that of saying no.
        """
        if not self.sigmoid:
            return -_COST_CLASS[False] * logits.softmax(-1)[:, labels]
        p, no, yes = logits.sigmoid(), F.softplus(logits), F.softplus(-logits)
        gain = self.alpha * (1 - p) ** self.gamma * yes - (1 - self.alpha) * p**self.gamma * no
        return _COST_CLASS[True] * gain[:, labels]

    @torch.no_grad()
    def match(
        self,
        logits: Tensor,
        boxes: Tensor,
        wanted: Tensor,
        labels: Tensor,
        image_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Which query is meant by which box; arguments as :meth:`loss`.

        Returns:
            tuple[Tensor, Tensor]: Indices of queries and of boxes, one each for a pair.
        """
        if not len(wanted):
            none = torch.zeros(0, dtype=torch.long, device=logits.device)
            return none, none
        cost = self.class_cost(logits.float(), labels) + place_cost(
            boxes.float(), wanted.float(), image_size
        )
        return assign(cost)

    def loss(
        self,
        logits: Tensor,
        boxes: Tensor,
        wanted: Tensor,
        labels: Tensor,
        pairs: tuple[Tensor, Tensor],
        image_size: tuple[int, int],
    ) -> Tensor:
        """DETR's loss of one image (Carion et al., ECCV 2020, eq. 3) at a given matching.

        Classes: focal loss summed over queries and classes, divided by the number of pairs, or
        cross-entropy, a mean by its class weights. Boxes: L1 and ``1 - GIoU``, means over pairs.

        Args:
            logits (Tensor): ``[Q, classes]``, or ``[Q, classes + 1]`` under a softmax.
            boxes (Tensor): ``(cx, cy, w, h)`` in shares of the image, ``[Q, 4]``.
            wanted (Tensor): Boxes wanted, likewise, ``[N, 4]``; may be empty.
            labels (Tensor): Their classes, ``[N]``.
            pairs (tuple[Tensor, Tensor]): Indices of queries and of boxes, from :meth:`match`.
            image_size (tuple[int, int]): ``(H, W)`` pixels.

        Returns:
            Tensor: Scalar, in float32 at least. Without boxes every query is background, and the
            boxes count 0 times, so that the whole graph stays.
        """
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits, boxes = logits.float(), boxes.float()
        query, box = pairs
        if self.sigmoid:
            goal = torch.zeros_like(logits)
            goal[query, labels[box]] = 1
            p = logits.sigmoid()
            off = goal * (1 - p) + (1 - goal) * p
            weight = (goal * self.alpha + (1 - goal) * (1 - self.alpha)) * off**self.gamma
            bce = F.binary_cross_entropy_with_logits(logits, goal, reduction='none')
            cls = (weight * bce).sum() / max(len(query), 1)
        else:
            goal = labels.new_full((len(logits),), logits.shape[-1] - 1)
            goal[query] = labels[box]
            weight = None if self.class_weight is None else self.class_weight.to(logits)
            cls = F.cross_entropy(logits, goal, weight=weight, reduction='sum')
            total = float(len(goal)) if weight is None else float(weight[goal].sum())
            cls = cls / max(total, 1.0)
        loss = self.cls_weight * cls
        if not len(query):
            return loss + 0 * boxes.sum()
        own, goal = boxes[query], wanted[box].to(boxes)
        h, w = image_size
        scale = boxes.new_tensor([w, h, w, h])
        giou = bbox_overlaps(
            bbox_cxcywh_to_xyxy(own) * scale,
            bbox_cxcywh_to_xyxy(goal) * scale,
            mode='giou',
            is_aligned=True,
            eps=_GIOU_EPS,
        )
        distance = (own - goal).abs().sum(-1).mean()
        return loss + self.l1_weight * distance + self.giou_weight * (1 - giou).mean()


def in_shares(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes ``[N, 4]`` from xyxy pixels to ``(cx, cy, w, h)`` in shares of the image."""
    h, w = image_size
    return bbox_xyxy_to_cxcywh(boxes) / boxes.new_tensor([w, h, w, h])
