from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import (
    FCOSHead,
    GFLHead,
    RetinaHead,
    RTMDetHead,
    RTMDetSepBNHead,
)
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdfkd.losses.dense import with_moments_of
from mmdfkd.losses.query import corner_giou

from .base import Adapter
from .dense import DenseAnswers, DenseProbe, DenseResponse
from .layout import assign_anchors, usual_sizes
from .normalizer import Normalizer
from .observation import Memory, Observation, Probe, Targets
from .point_layout import PlacePlan, plan_places
from .towers import recorded, replaced

#: Pairs of boxes compared at once: 16 MB for each of the dozen arrays that it takes.
_MOST_PAIRS = 1 << 22
_HEADS = (RetinaHead, FCOSHead, GFLHead, RTMDetHead, RTMDetSepBNHead)


def _runs(head: nn.Module) -> bool:
    """Whether its forward is that of one of the heads above, whatever else a subclass changes."""
    return any(
        isinstance(head, base)
        and all(
            getattr(type(head), name, None) is getattr(base, name, None)
            for name in ('forward', 'forward_single')
        )
        for base in _HEADS
    )


class OneStageAdapter(Adapter):
    """mmdet's RetinaNet, FCOS, GFL and RTMDet, with anchors and without; boxes alone, no masks.

    Both networks answer at every place of every level. Where teacher and student have one grid
    (strides, sizes of the maps, anchors), places are pairs, also of two heads: GFL's and FCOS's are
    one. Rows of the response are those at the teacher's surest places.
    """

    family = 'one-stage'
    examples = 'RetinaNet, FCOS, GFL, RTMDet, of boxes without masks'
    #: Places per image that the probe holds.
    most = 100

    def __init__(self, net: nn.Module, normalizer: Normalizer) -> None:
        super().__init__(net, normalizer)
        # Of the four RetinaNet alone has anchors of the sizes and shapes that it is to find.
        self.sizes_from_images = not isinstance(self.head, RetinaHead)

    @classmethod
    def supports(cls, net: nn.Module) -> bool:
        """True for the four and what changes no more than their losses; not with masks."""
        head = getattr(net, 'bbox_head', None)
        return _runs(head) and bool(head.use_sigmoid_cls) and not hasattr(net, 'mask_head')

    @property
    def head(self) -> nn.Module:
        """The network's dense head."""
        return self.net.bbox_head

    @property
    def num_classes(self) -> int:
        """Number of foreground classes."""
        return int(self.head.num_classes)

    def features(self, inputs: Tensor) -> tuple:
        """Backbone and neck: one ``[B, C, H, W]`` per level."""
        return tuple(self.net.extract_feat(inputs))

    def outputs(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """The head's maps, level by level: classes, boxes and, of FCOS, centerness.

        Distances are in pixels in either mode of the network: in training FCOS's
        (``norm_on_bbox``) are in strides.
        """
        head = self.head
        maps = tuple(list(levels) for levels in head(tuple(feats)))
        if isinstance(head, FCOSHead) and head.norm_on_bbox and head.training:
            strides = (s[0] for s in head.prior_generator.strides)
            maps = (maps[0], [x * s for x, s in zip(maps[1], strides, strict=True)], *maps[2:])
        return maps

    def priors(self, like: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Anchors ``[N, 4]`` or points ``[N, 2]`` of all places, and the stride of each ``[N]``."""
        generator = self.head.prior_generator
        levels = generator.grid_priors(
            [x.shape[-2:] for x in like], dtype=torch.float32, device=like[0].device
        )
        strides = [
            level.new_full((len(level),), float(stride[0]))
            for level, stride in zip(levels, generator.strides, strict=True)
        ]
        return torch.cat(levels), torch.cat(strides)

    def answers(self, maps: tuple[list[Tensor], ...]) -> DenseAnswers:
        """What :meth:`outputs` gave, place by place."""
        head = self.head
        logits = _rows(maps[0], self.num_classes)
        bins = head.reg_max + 1 if isinstance(head, GFLHead) else 1
        coded = _rows(maps[1], 4 * bins).float()
        priors, strides = self.priors(maps[0])
        distributions = None
        if bins > 1:
            distributions = coded.unflatten(-1, (4, bins))
            project = head.integral.project.to(coded)
            coded = (distributions.softmax(-1) @ project) * strides[:, None]
            priors = (priors[:, :2] + priors[:, 2:]) / 2
        count = len(coded)
        boxes = head.bbox_coder.decode(priors.repeat(count, 1), coded.flatten(0, 1))
        anchors = head.prior_generator.num_base_priors
        return DenseAnswers(
            logits=logits,
            boxes=boxes.unflatten(0, (count, -1)),
            grid=tuple(
                (int(stride[0]), *x.shape[-2:], int(number))
                for x, stride, number in zip(
                    maps[0], head.prior_generator.strides, anchors, strict=True
                )
            ),
            distributions=distributions,
            centerness=_rows(maps[2], 1)[..., 0] if len(maps) > 2 else None,
        )

    def ask(self, memory: Memory) -> DenseAnswers:
        """All answers to a memory, differentiable."""
        return self.answers(self.outputs(memory.feats))

    @torch.no_grad()
    def propose(self, memory: Memory, targets: Targets | None = None) -> DenseProbe:
        """The surest places."""
        return self._probe(self.ask(memory), memory)

    def _probe(self, answers: DenseAnswers, memory: Memory) -> DenseProbe:
        scores = answers.scores.detach().amax(-1)
        scores, index = scores.topk(min(self.most, scores.shape[1]), 1)
        boxes = answers.boxes.detach().gather(1, index[..., None].expand(-1, -1, 4))
        boxes = _clipped(boxes, memory.image_size)
        return DenseProbe(list(boxes), list(scores), list(index), answers.grid)

    def answer(self, memory: Memory, probe: Probe | None = None) -> DenseResponse:
        """Every place, and rows at the probe's: at its own surest ones without a probe."""
        if not torch.is_grad_enabled():
            maps, towers = self.outputs(memory.feats), {}
        else:
            with recorded(self.head) as towers:
                maps = self.outputs(memory.feats)
        return self._response(memory, maps, self.answers(maps), probe, towers)

    def _response(
        self,
        memory: Memory,
        maps: tuple[list[Tensor], ...],
        answers: DenseAnswers,
        probe: Probe | None,
        towers: dict,
    ) -> DenseResponse:
        if probe is None:
            probe = self._probe(answers, memory)
        if isinstance(probe, DenseProbe) and probe.grid == answers.grid:
            index = probe.index
        else:
            index = [
                _nearest(own.detach(), wanted)
                for own, wanted in zip(answers.boxes, probe.boxes, strict=True)
            ]
        rows = torch.cat([x[i] for x, i in zip(answers.logits, index, strict=True)])
        return DenseResponse(
            logits=F.pad(rows, (0, 1)),
            dense_logits=tuple(maps[0]),
            dense_deltas=tuple(maps[1]),
            answers=answers,
            towers=towers,
            find_boxes=lambda: torch.cat([x[i] for x, i in zip(answers.boxes, index, strict=True)]),
        )

    @torch.no_grad()
    def observe(
        self,
        images: Tensor,
        taps: Sequence[str] = (),
        respond: bool = True,
        *,
        fresh: bool = False,
        seed: int = 0,
        serials: Sequence[int] | None = None,
    ) -> Observation:
        """As :meth:`Adapter.observe`; one pass of the head gives probe, answer and detections."""
        memory = self.encode(images, taps)
        through = partial(self.through, memory)
        if not respond:
            return Observation(
                memory, find_detections=partial(self.detect, memory), through=through
            )
        maps = self.outputs(memory.feats)
        answers = self.answers(maps)
        probe = self._probe(answers, memory)
        response = self._response(memory, maps, answers, probe, {})
        detect = partial(self._detections, memory, maps)
        return Observation(memory, probe, response, detect, through=through)

    def through(
        self,
        memory: Memory,
        other: Memory,
        towers: dict[str, list[list[Tensor]]],
        convs: int,
        restandardise: bool = True,
    ) -> DenseAnswers:
        """What the rest of this head makes of another network's features (CrossKD).

        Args:
            memory (Memory): This network's own, of the same images.
            other (Memory): The other network's.
            towers (dict[str, list[list[Tensor]]]): What its head's convolutions gave
                (:attr:`DenseResponse.towers`).
            convs (int): How many of both towers' convolutions are the other network's; 0 hands over
                its pyramid.
            restandardise (bool): Whether to give each channel the mean and deviation that this
                network's own has there. Defaults to True.

        Returns:
            DenseAnswers: Differentiable to the other network.
        """
        if not convs:
            feats = other.feats
            if restandardise:
                feats = [with_moments_of(*pair) for pair in zip(feats, memory.feats, strict=True)]
            return self.answers(self.outputs(feats))
        given = {tower: steps[convs - 1] for tower, steps in towers.items()}
        # What comes before runs on this network's own features: it gives the moments.
        with replaced(self.head, given, convs - 1, restandardise):
            return self.ask(memory)

    @torch.no_grad()
    def class_votes(self, memory: Memory) -> Tensor:
        """Per class, its highest score at any place of the image."""
        return self.ask(memory).scores.amax(1)

    @torch.no_grad()
    def class_places(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Per class, the box of the place that is surest of it."""
        answers = self.ask(memory)
        votes, best = answers.scores.max(1)
        boxes = answers.boxes.gather(1, best[..., None].expand(-1, -1, 4))
        return votes, _clipped(boxes, memory.image_size)

    @torch.no_grad()
    def box_sizes(self, memory: Memory | None = None) -> Tensor:
        """Of RetinaNet's anchors; of the boxes at the surest places of images otherwise.

        Raises:
            ValueError: Without images, for a network whose sizes are read there.
        """
        if not self.sizes_from_images:
            anchors = torch.cat(list(self.head.prior_generator.base_anchors))
            return anchors[:, 2:] - anchors[:, :2]
        if memory is None:
            raise ValueError(
                f'{type(self.head).__name__} has no anchors of the sizes it finds; they are read '
                'from images: box_sizes(adapter.encode(images)).'
            )
        return usual_sizes(torch.cat(self.propose(memory).boxes))

    @torch.no_grad()
    def detect(self, memory: Memory) -> list[InstanceData]:
        """Final detections of each image: ``bboxes`` in its pixels, ``scores``, ``labels``."""
        return self._detections(memory, self.outputs(memory.feats))

    @torch.no_grad()
    def _detections(self, memory: Memory, maps: tuple[list[Tensor], ...]) -> list[InstanceData]:
        meta = dict(
            img_shape=memory.image_size, ori_shape=memory.image_size, scale_factor=(1.0, 1.0)
        )
        metas = [dict(meta) for _ in range(len(memory.feats[0]))]
        # mmdet makes anchors of the maps' type: in half precision they would miss pixels.
        maps = ([x.float() for x in levels] for levels in maps)
        return self.head.predict_by_feat(*maps, batch_img_metas=metas, rescale=False)

    def plan(self, maps: Sequence[Tensor], targets: Targets) -> list[PlacePlan]:
        """The layouts' fixed assignments, computed on the first call and kept with the targets."""
        # Teacher and student may share the targets, but not the places.
        plans = targets.plan = {} if targets.plan is None else targets.plan
        if self.net not in plans:
            priors, strides = self.priors(maps)
            plans[self.net] = [self._assigned(boxes, priors, strides) for boxes in targets.boxes]
        return plans[self.net]

    def _assigned(self, boxes: Tensor, priors: Tensor, strides: Tensor) -> PlacePlan:
        boxes = boxes.to(priors)
        if isinstance(self.head, RetinaHead):
            return PlacePlan(*assign_anchors(boxes, priors, 0.5, 0.4))
        points = priors if priors.shape[1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2
        ranges = None
        if isinstance(self.head, FCOSHead):
            levels = [s[0] for s in self.head.prior_generator.strides]
            table = priors.new_tensor(self.head.regress_ranges)
            ranges = table[torch.bucketize(strides, priors.new_tensor(levels))]
        return plan_places(boxes, points, strides, ranges)

    def target_loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Layout loss of each image: positives and background in equal parts.

        Not ``detector.loss()``: ATSS and SimOTA assign anew in every step, by what the network
        happens to predict. Here places are fixed (:meth:`plan`) and every term is a mean: over
        background and over positives the binary cross-entropy, a sum over classes; over positives
        ``1 - GIoU`` and, of FCOS, the cross-entropy of centerness with 1.

        Returns:
            Tensor: ``[B]``.
        """
        maps = self.outputs(memory.feats)
        answers = self.answers(maps)
        losses = []
        for i, plan in enumerate(self.plan(maps[0], targets)):
            logits = answers.logits[i]
            # An image without any background adds nothing, where a mean would be NaN.
            background = F.softplus(logits[plan.negative]).sum(-1)
            loss = background.sum() / max(len(background), 1)
            if len(plan.positive):
                found = logits[plan.positive]
                goal = F.one_hot(targets.box_labels[i][plan.matched], self.num_classes).to(found)
                each = F.binary_cross_entropy_with_logits(found, goal, reduction='none')
                loss = loss + each.sum(-1).mean()
                boxes = answers.boxes[i][plan.positive]
                wanted = targets.boxes[i].to(boxes)[plan.matched]
                loss = loss + (1 - corner_giou(boxes, wanted)).mean()
                if answers.centerness is not None:
                    loss = loss + F.softplus(-answers.centerness[i][plan.positive]).mean()
            losses.append(loss)
        return torch.stack(losses)


def _rows(levels: Sequence[Tensor], width: int) -> Tensor:
    """Maps ``[B, A * width, h, w]`` as ``[B, N, width]``, position-major."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, width) for x in levels], 1)


def _nearest(own: Tensor, wanted: Tensor) -> Tensor:
    """For each of ``[K, 4]`` boxes the one of ``[N, 4]`` that is nearest by GIoU: ``[K]``."""
    # Some at once: all places of a large image with all proposals are gigabytes.
    some = max(_MOST_PAIRS // max(len(own), 1), 1)
    return torch.cat(
        [bbox_overlaps(own, part, mode='giou').argmax(0) for part in wanted.to(own).split(some)]
    )


def _clipped(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes ``[..., 4]`` in xyxy pixels, inside the image; without size where sides passed."""
    h, w = image_size
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([w, h, w, h]))
    # RTMDet's distances may be negative.
    return torch.cat([boxes[..., :2], boxes[..., 2:].maximum(boxes[..., :2])], -1)
