import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import RPNHead
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .base import Adapter
from .layout import LayoutPlan, plan_layout
from .normalizer import Normalizer
from .observation import Memory, Probe, Response, Targets
from .roi_stages import RoIStages, runs_cascade, runs_single


class TwoStageAdapter(Adapter):
    """mmdet's detectors with an RPN and RoI heads: Faster, Mask and Cascade R-CNN, ViTDet.

    Of a cascade every stage answers, each where the teacher's stage before it moved the boxes.

    Args:
        net (nn.Module): The detector.
        normalizer (Normalizer): From images in [0, 1] to its input.

    Raises:
        ValueError: If the class scores of a box head are no softmax over classes and a background.
    """

    family = 'two-stage'
    examples = 'Faster, Mask and Cascade R-CNN, ViTDet'

    def __init__(self, net: nn.Module, normalizer: Normalizer) -> None:
        super().__init__(net, normalizer)
        self.stages = RoIStages(net.roi_head)

    @classmethod
    def supports(cls, net: nn.Module) -> bool:
        """True for a detector with an RPN of anchors and one box head, or Cascade R-CNN's.

        Objectness is one sigmoid an anchor.
        """
        roi_head, rpn = getattr(net, 'roi_head', None), getattr(net, 'rpn_head', None)
        if roi_head is None or not isinstance(rpn, RPNHead) or not rpn.use_sigmoid_cls:
            return False
        if isinstance(getattr(roi_head, 'bbox_head', None), nn.ModuleList):
            return runs_cascade(roi_head)
        return runs_single(roi_head)

    @property
    def num_classes(self) -> int:
        """Number of foreground classes."""
        return int(self.stages.heads[0].num_classes)

    def features(self, inputs: Tensor) -> tuple:
        """Backbone and neck: one ``[B, C, H, W]`` per level."""
        return tuple(self.net.extract_feat(inputs))

    def _metas(self, memory: Memory) -> list[dict]:
        meta = dict(
            img_shape=memory.image_size,
            ori_shape=memory.image_size,
            batch_input_shape=memory.image_size,
            pad_shape=memory.image_size,
            scale_factor=(1.0, 1.0),
        )
        return [dict(meta) for _ in range(memory.feats[0].shape[0])]

    @torch.no_grad()
    def propose(self, memory: Memory, targets: Targets | None = None) -> Probe:
        """The RPN's proposals after suppression, by the network's own ``test_cfg``."""
        rpn = self.net.rpn_head
        # mmdet makes anchors of the maps' type: in half precision they would miss pixels.
        maps = ([x.float() for x in levels] for levels in rpn(memory.feats))
        results = rpn.predict_by_feat(*maps, batch_img_metas=self._metas(memory), cfg=rpn.test_cfg)
        probe = Probe(boxes=[r.bboxes for r in results], scores=[r.scores for r in results])
        if len(self.stages.heads) > 1:
            _, places = self.stages.run(memory.feats, probe.boxes, memory.image_size)
            probe.moved = tuple(places[1:])
        return probe

    def answer(self, memory: Memory, probe: Probe) -> Response:
        """RPN maps, and RoI logits and deltas at the probe's boxes."""
        dense_logits, dense_deltas = self.net.rpn_head(memory.feats)
        found, places = self.stages.run(memory.feats, probe.boxes, memory.image_size, probe.moved)
        return Response(
            self._together(found),
            found[-1][1],
            tuple(dense_logits),
            tuple(dense_deltas),
            stages=tuple(found),
            find_boxes=lambda: self._moved(
                found[-1][1], places[-1], found[-1][0].detach()[:, :-1].argmax(1), memory.image_size
            ),
            find_class_boxes=lambda labels: self._moved(
                found[-1][1], places[-1], labels, memory.image_size
            ),
        )

    def _moved(
        self, deltas: Tensor, boxes: list[Tensor], label: Tensor, image_size: tuple[int, int]
    ) -> Tensor:
        """Where the last stage's deltas lead, by these classes: ``[sum K_i, 4]``."""
        head = self.stages.heads[-1]
        if not len(deltas):
            return deltas.reshape(0, 4)
        return head.regress_by_class(torch.cat(boxes), label, deltas, dict(img_shape=image_size))

    @staticmethod
    def _together(found: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Classes, as prediction takes them: the mean of the stages' logits."""
        return torch.stack([logits for logits, _ in found]).mean(0)

    def masks(self, memory: Memory, boxes: list[Tensor]) -> list[Tensor]:
        """Mask logits of each stage at boxes of each image."""
        return self.stages.masks(memory.feats, boxes)

    def _class_probabilities(self, memory: Memory, probe: Probe) -> Tensor:
        found, _ = self.stages.run(memory.feats, probe.boxes, memory.image_size, probe.moved)
        return self._together(found).softmax(-1)[:, :-1]

    @torch.no_grad()
    def class_votes(self, memory: Memory) -> Tensor:
        """Per class, its highest probability at any proposal of the image."""
        probe = self.propose(memory)
        probabilities = self._class_probabilities(memory, probe)
        counts = [len(b) for b in probe.boxes]
        empty = probabilities.new_zeros(self.num_classes)
        return torch.stack([p.amax(0) if len(p) else empty for p in probabilities.split(counts)])

    @torch.no_grad()
    def class_places(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Per class, the proposal where it is seen most: class probability times objectness."""
        probe = self.propose(memory)
        probabilities = self._class_probabilities(memory, probe)
        votes = probabilities.new_zeros(len(probe.boxes), self.num_classes)
        boxes = probabilities.new_zeros(len(probe.boxes), self.num_classes, 4)
        parts = probabilities.split([len(b) for b in probe.boxes])
        for i, (part, own, score) in enumerate(zip(parts, probe.boxes, probe.scores, strict=True)):
            if len(own):
                votes[i], best = (part * score[:, None]).max(0)
                boxes[i] = own[best]
        return votes, boxes

    def box_sizes(self, memory: Memory | None = None) -> Tensor:
        """Of the RPN's anchors, all levels; no images are needed."""
        anchors = torch.cat(list(self.net.rpn_head.prior_generator.base_anchors))
        return anchors[:, 2:] - anchors[:, :2]

    @torch.no_grad()
    def detect(self, memory: Memory) -> list[InstanceData]:
        """Final detections of each image: ``bboxes`` in its pixels, ``scores``, ``labels``."""
        probe = self.propose(memory)
        proposals = [
            InstanceData(bboxes=b, scores=s) for b, s in zip(probe.boxes, probe.scores, strict=True)
        ]
        samples = [DetDataSample(metainfo=meta) for meta in self._metas(memory)]
        return self.net.roi_head.predict(memory.feats, proposals, samples, rescale=False)

    def plan(self, memory: Memory, targets: Targets) -> list[LayoutPlan]:
        """The layouts' fixed assignments, computed on the first call and kept with the targets."""
        # Teacher and student may share the targets, but not the anchors.
        plans = targets.plan = {} if targets.plan is None else targets.plan
        if self.net not in plans:
            sizes = [f.shape[-2:] for f in memory.feats]
            levels = self.net.rpn_head.prior_generator.grid_priors(
                sizes, device=memory.feats[0].device
            )
            anchors = torch.cat(levels)
            plans[self.net] = [
                plan_layout(boxes, labels, anchors, memory.image_size, self.num_classes)
                for boxes, labels in zip(targets.boxes, targets.box_labels, strict=True)
            ]
        return plans[self.net]

    def target_loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Layout loss of each image: RPN and RoI, positives and negatives in equal parts.

        Not ``detector.loss()``: that detaches the proposals and samples them with the global
        generator.
        Here anchors and RoIs are fixed (:func:`plan_layout`) and every term is a mean, so the loss
        depends
        neither on the resolution nor on the number of boxes.

        Returns:
            Tensor: ``[B]``.
        """
        plans = self.plan(memory, targets)
        levels = self.net.rpn_head.prior_generator.grid_priors(
            [f.shape[-2:] for f in memory.feats], device=memory.feats[0].device
        )
        anchors = torch.cat(levels)
        dense_logits, dense_deltas = self.net.rpn_head(memory.feats)
        # The RPN's own order: position-major, anchors of a position together.
        logits = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in dense_logits], 1)
        deltas = torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in dense_deltas], 1)
        rois = [plan.rois for plan in plans]
        counts = [len(own) for own in rois]
        stages = [
            [x.split(counts) for x in self.stages.outputs(stage, memory.feats, rois)]
            for stage in range(len(self.stages.heads))
        ]
        losses = []
        for i, plan in enumerate(plans):
            # An image without any background anchor adds nothing, where a mean would be NaN.
            negative = F.softplus(logits[i][plan.negative])
            loss = negative.sum() / max(len(negative), 1)
            if len(plan.positive):
                loss = loss + F.softplus(-logits[i][plan.positive]).mean()
                goal = self.net.rpn_head.bbox_coder.encode(
                    anchors[plan.positive], targets.boxes[i][plan.matched]
                )
                loss = loss + F.l1_loss(deltas[i][plan.positive], goal)
            for head, (cls, reg) in zip(self.stages.heads, stages, strict=True):
                own = _roi_loss(head, plan, cls[i], reg[i], targets.boxes[i])
                loss = loss + own / len(stages)
            losses.append(loss)
        return torch.stack(losses)


def _roi_loss(
    head: nn.Module, plan: LayoutPlan, logits: Tensor, deltas: Tensor, boxes: Tensor
) -> Tensor:
    """One stage's loss at the plan's RoIs of one image."""
    background = plan.roi_labels == head.num_classes
    loss = logits.sum() * 0
    if background.any():
        loss = loss + F.cross_entropy(logits[background], plan.roi_labels[background])
    if len(plan.positive):
        n = len(plan.roi_matched)
        loss = loss + F.cross_entropy(logits[:n], plan.roi_labels[:n])
        own = deltas[:n]
        if not head.reg_class_agnostic:
            rows = torch.arange(n, device=own.device)
            own = own.view(n, -1, 4)[rows, plan.roi_labels[:n]]
        goal = head.bbox_coder.encode(plan.rois[:n], boxes[plan.roi_matched])
        loss = loss + F.l1_loss(own, goal)
    return loss
