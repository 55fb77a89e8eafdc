import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .base import Adapter
from .layout import LayoutPlan, plan_layout
from .observation import Memory, Probe, Response, Targets


class TwoStageAdapter(Adapter):
    """mmdet's detectors with an RPN and one RoI stage: Faster R-CNN, Mask R-CNN (its boxes)."""

    family = 'two-stage'

    @classmethod
    def supports(cls, net: nn.Module) -> bool:
        """True for a detector with an RPN and a single-stage RoI head."""
        roi_head = getattr(net, 'roi_head', None)
        return (
            roi_head is not None
            and hasattr(net, 'rpn_head')
            and not isinstance(getattr(roi_head, 'bbox_head', None), nn.ModuleList)
            and hasattr(roi_head, 'bbox_roi_extractor')
        )

    @property
    def num_classes(self) -> int:
        """Number of foreground classes."""
        return int(self.net.roi_head.bbox_head.num_classes)

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
        results = rpn.predict_by_feat(
            *rpn(memory.feats), batch_img_metas=self._metas(memory), cfg=rpn.test_cfg
        )
        return Probe(boxes=[r.bboxes for r in results], scores=[r.scores for r in results])

    def _roi_outputs(self, feats: tuple, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        out = self.net.roi_head._bbox_forward(feats, bbox2roi(boxes))
        return out['cls_score'], out['bbox_pred']

    def answer(self, memory: Memory, probe: Probe) -> Response:
        """RPN maps, and RoI logits and deltas at the probe's boxes."""
        dense_logits, dense_deltas = self.net.rpn_head(memory.feats)
        logits, deltas = self._roi_outputs(memory.feats, probe.boxes)
        return Response(logits, deltas, tuple(dense_logits), tuple(dense_deltas))

    @torch.no_grad()
    def class_votes(self, memory: Memory) -> Tensor:
        """Per class, its highest probability at any proposal of the image."""
        probe = self.propose(memory)
        probabilities = self._roi_outputs(memory.feats, probe.boxes)[0].softmax(-1)[:, :-1]
        counts = [len(b) for b in probe.boxes]
        empty = probabilities.new_zeros(self.num_classes)
        return torch.stack([p.amax(0) if len(p) else empty for p in probabilities.split(counts)])

    @torch.no_grad()
    def class_places(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Per class, the proposal where it is seen most: class probability times objectness."""
        probe = self.propose(memory)
        probabilities = self._roi_outputs(memory.feats, probe.boxes)[0].softmax(-1)[:, :-1]
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
        if targets.plan is None:
            sizes = [f.shape[-2:] for f in memory.feats]
            levels = self.net.rpn_head.prior_generator.grid_priors(
                sizes, device=memory.feats[0].device
            )
            anchors = torch.cat(levels)
            targets.plan = [
                plan_layout(boxes, labels, anchors, memory.image_size, self.num_classes)
                for boxes, labels in zip(targets.boxes, targets.box_labels, strict=True)
            ]
        return targets.plan

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
        roi_logits, roi_deltas = self._roi_outputs(memory.feats, [p.rois for p in plans])
        counts = [len(p.rois) for p in plans]
        roi_head = self.net.roi_head.bbox_head
        losses = []
        for i, (plan, cls, reg) in enumerate(
            zip(plans, roi_logits.split(counts), roi_deltas.split(counts), strict=True)
        ):
            # An image without any background anchor adds nothing, where a mean would be NaN.
            negative = F.softplus(logits[i][plan.negative])
            loss = negative.sum() / max(len(negative), 1)
            background = plan.roi_labels == self.num_classes
            if background.any():
                loss = loss + F.cross_entropy(cls[background], plan.roi_labels[background])
            if len(plan.positive):
                boxes = targets.boxes[i]
                loss = loss + F.softplus(-logits[i][plan.positive]).mean()
                goal = self.net.rpn_head.bbox_coder.encode(
                    anchors[plan.positive], boxes[plan.matched]
                )
                loss = loss + F.l1_loss(deltas[i][plan.positive], goal)
                n = len(plan.roi_matched)
                loss = loss + F.cross_entropy(cls[:n], plan.roi_labels[:n])
                own = reg[:n]
                if not roi_head.reg_class_agnostic:
                    rows = torch.arange(n, device=own.device)
                    own = own.view(n, -1, 4)[rows, plan.roi_labels[:n]]
                goal = roi_head.bbox_coder.encode(plan.rois[:n], boxes[plan.roi_matched])
                loss = loss + F.l1_loss(own, goal)
            losses.append(loss)
        return torch.stack(losses)
