"""What follows the backbone, one class per family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from mmdfkd.adapters import Adapter, Memory, Probe
from mmdfkd.models.necks import SimpleFPN

from .chain import Stage, conv_stage, inherit_chain
from .depth import uniform_layers
from .least_squares import Refit
from .pyramid import PyramidMap, check_pyramids, inherit_pyramid
from .recipe import Recipe
from .transformer import Plan, assign, assign_layer, check_backbones, held_out, inherit_backbone
from .views import MmpretrainView, ViTDetView, view_backbone

#: Cells of the finest level, and regions, that the refits of a detector look at.
_MAX_CELLS = 131072
_MAX_ROIS = 6144


class Heir(ABC):
    """Makes what follows the backbone of a student.

    Args:
        teacher, student (Adapter): Of one family.
    """

    def __init__(self, teacher: Adapter, student: Adapter) -> None:
        self.teacher, self.student = teacher, student
        if type(teacher.net.backbone) is not type(student.net.backbone):
            raise ValueError(
                f"The teacher's backbone is a {type(teacher.net.backbone).__name__}, the "
                "student's a "
                f'{type(student.net.backbone).__name__}: a student inherits from its own kind only.'
            )
        self.views = tuple(self.look_into(a.net.backbone) for a in (teacher, student))

    @staticmethod
    def look_into(backbone: nn.Module):
        """The view of a backbone; raises ValueError for one that is not supported."""
        return view_backbone(backbone)

    def check(self) -> None:
        """Raise ValueError where the sizes do not allow it, as far as no image is needed."""
        check_backbones(*self.views)
        kinds = [view.kinds for view in self.views]
        uniform_layers(*kinds)

    def tokens(self, inputs: Tensor) -> int:
        """How many tokens the teacher's first block reads of one image ``[1, 3, H, W]``."""
        return self.views[0].embed(inputs)[0].shape[:-1].numel()

    def backbone(self, inputs: tuple[Sequence[Tensor], Sequence[Tensor]], recipe: Recipe) -> Plan:
        """Write the student's backbone; see :func:`inherit_backbone`."""
        return inherit_backbone(*self.views, inputs, recipe, self.readout, self.distance)

    @abstractmethod
    def readout(self, tokens: Tensor) -> list[Tensor]:
        """What the teacher makes of its last tokens; judges which blocks matter."""

    @abstractmethod
    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """Between two readouts."""

    @abstractmethod
    def finish(self, plan: Plan, recipe: Recipe, images: Sequence[Tensor]) -> PyramidMap | None:
        """Write everything after the student's backbone."""

    @abstractmethod
    def agreement(
        self, images: Sequence[Tensor], maps: PyramidMap | None
    ) -> dict[str, float | list[float]]:
        """Compare both networks on ``images``."""


def compare_answers(
    teacher: Adapter, student: Adapter, images: Sequence[Tensor]
) -> dict[str, float | list[float]]:
    """How far two classifiers agree on batches of images: ``top1`` and ``kl`` in nats."""
    pairs = [[a.answer(a.encode(b), None).logits for a in (teacher, student)] for b in images]
    theirs, ours = (torch.cat(x).double() for x in zip(*pairs, strict=True))
    kl = F.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), reduction='batchmean', log_target=True
    )
    return dict(top1=float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()), kl=float(kl))


class ClassifierHeir(Heir):
    """mmpretrain's plain ViTs with a linear head."""

    def __init__(self, teacher: Adapter, student: Adapter) -> None:
        super().__init__(teacher, student)
        if not isinstance(self.views[0], MmpretrainView):
            raise ValueError(
                "Inheritance supports classifiers with mmpretrain's ViTs and Swin only."
            )
        if getattr(teacher.net, 'neck', None) is not None:
            raise ValueError('Inheritance does not support a classifier with a neck.')
        self.readers = [self._readers(net.head) for net in (teacher.net, student.net)]

    @staticmethod
    def _readers(head: nn.Module) -> list[nn.Linear]:
        """Layers that read the normalised class token (and the distillation token)."""
        if isinstance(getattr(head, 'fc', None), nn.Linear):
            return [head.fc]
        layers = getattr(head, 'layers', None)
        if layers is None or not hasattr(layers, 'head'):
            raise ValueError(f'Inheritance does not support the head {type(head).__name__}.')
        if hasattr(layers, 'pre_logits'):
            return [layers.pre_logits]
        return [layers.head, layers.head_dist] if hasattr(layers, 'head_dist') else [layers.head]

    def _logits(self, tokens: Tensor) -> Tensor:
        head = self.teacher.net.head
        norm, pooled = self.views[0].pool(tokens)
        pooled = pooled if norm is None else norm(pooled)
        feats = pooled[:, 0] if pooled.shape[1] == 1 else tuple(pooled.unbind(1))
        return head((feats,))

    def readout(self, tokens: Tensor) -> list[Tensor]:
        """What the teacher makes of its last tokens."""
        return [self._logits(tokens)]

    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """Between two readouts."""
        return F.kl_div(
            ours[0].log_softmax(-1),
            theirs[0].log_softmax(-1),
            reduction='batchmean',
            log_target=True,
        )

    def finish(self, plan: Plan, recipe: Recipe, images: Sequence[Tensor]) -> None:
        """Write everything after the backbone."""
        theirs, own = self.views
        norm, own_norm = theirs.pool(plan.teacher_tokens[0])[0], own.pool(plan.student_tokens[0])[0]
        if norm is None:
            read = plan.stream.read
        else:
            read, weight, bias = plan.stream.through_norm(norm.weight, norm.bias)
            assign(own_norm.weight, weight)
            assign(own_norm.bias, bias)
        # A hidden layer has the teacher's width; what reads it is copied.
        for a, b in zip(
            self.teacher.net.head.parameters(), self.student.net.head.parameters(), strict=True
        ):
            if a.shape == b.shape:
                assign(b, a)
        for slot, (reader, own_reader) in enumerate(zip(*self.readers, strict=True)):
            assign_layer(own_reader, reader.weight.double() @ read, reader.bias)
            if not recipe.refits:
                continue
            fit = Refit(own_reader.weight, own_reader.bias)
            for i, (x, y) in enumerate(zip(plan.teacher_tokens, plan.student_tokens, strict=True)):
                x, y = theirs.pool(x)[1], own.pool(y)[1]
                x, y = (x if norm is None else norm(x)), (y if norm is None else own_norm(y))
                if len(self.readers[0]) > 1:
                    x, y = x[:, slot], y[:, slot]
                fit.add(y.flatten(0, -2), reader(x).flatten(0, -2), held_out(i))
            assign_layer(own_reader, *fit.solve())

    def agreement(
        self, images: Sequence[Tensor], maps: PyramidMap | None
    ) -> dict[str, float | list[float]]:
        """Compare both networks on ``images``."""
        return compare_answers(self.teacher, self.student, images)


class TwoStageHeir(Heir):
    """Two-stage detectors with ViTDet and SimpleFPN."""

    def __init__(self, teacher: Adapter, student: Adapter) -> None:
        super().__init__(teacher, student)
        for net in (teacher.net, student.net):
            if not isinstance(net.backbone, ViTDetView.backbone_type) or not isinstance(
                net.neck, SimpleFPN
            ):
                raise ValueError(
                    'Inheritance supports two-stage detectors with mmdfkd.ViTDet and '
                    'mmdfkd.SimpleFPN, not '
                    f'{type(net.backbone).__name__} with {type(net.neck).__name__}.'
                )
            if net.backbone.out_indices != (net.backbone.num_layers - 1,):
                raise ValueError(
                    'Inheritance needs a ViTDet that returns its last block alone (out_indices=-1).'
                )

    def check(self) -> None:
        """Of backbone and pyramid."""
        super().check()
        check_pyramids(self.teacher.net.neck, self.student.net.neck)

    @staticmethod
    def _map(tokens: Tensor) -> Tensor:
        return tokens.permute(0, 3, 1, 2).contiguous()

    def readout(self, tokens: Tensor) -> list[Tensor]:
        """What the teacher makes of its last tokens."""
        return list(self.teacher.net.neck(self._map(tokens)))

    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """Between two readouts."""
        return torch.stack(
            [
                (a - b).square().mean() / b.var().clamp_min(1e-12)
                for a, b in zip(ours, theirs, strict=True)
            ]
        ).mean()

    def finish(self, plan: Plan, recipe: Recipe, images: Sequence[Tensor]) -> PyramidMap:
        """Write everything after the backbone."""
        old, new = self.teacher.net, self.student.net
        x, y = (
            [self._map(t) for t in tokens] for tokens in (plan.teacher_tokens, plan.student_tokens)
        )
        finest = max(max(old.neck.scale_factors), 1) ** 2 * x[0].shape[-1] * x[0].shape[-2]
        enough = max(4, int(_MAX_CELLS / finest / len(x[0])))
        x, y, images = x[:enough], y[:enough], images[:enough]
        maps = inherit_pyramid(old.neck, new.neck, plan.stream, x, y, recipe)
        x, y = [old.neck(b) for b in x], [new.neck(b) for b in y]
        self._rpn(x, y, maps.read, recipe)
        self._roi(x, y, images, maps.read, recipe)
        return maps

    def _propose(self, memory: Memory) -> Probe:
        """The teacher's proposals, made in float32: mmcv's suppression knows no float64."""
        if memory.feats[0].dtype == torch.float32:
            return self.teacher.propose(memory)
        rpn = self.teacher.net.rpn_head
        outputs = [[level.float() for level in maps] for maps in rpn(memory.feats)]
        metas = [dict(img_shape=memory.image_size)] * len(memory.feats[0])
        found = rpn.predict_by_feat(*outputs, batch_img_metas=metas, cfg=rpn.test_cfg)
        return Probe(
            [f.bboxes.to(memory.feats[0]) for f in found],
            [f.scores.to(memory.feats[0]) for f in found],
        )

    def _rpn(self, x: Sequence[tuple], y: Sequence[tuple], read: Tensor, recipe: Recipe) -> None:
        old, new = self.teacher.net.rpn_head, self.student.net.rpn_head
        held = [held_out(i) for i, feats in enumerate(x) for _ in feats]
        maps = [level for feats in x for level in feats], [level for feats in y for level in feats]
        inherit_chain(
            self._rpn_stages(old),
            self._rpn_stages(new),
            [(old.rpn_cls, new.rpn_cls), (old.rpn_reg, new.rpn_reg)],
            maps,
            held,
            read,
            recipe,
        )

    @staticmethod
    def _rpn_stages(head: nn.Module) -> list[Stage]:
        if isinstance(head.rpn_conv, nn.Conv2d):
            return [Stage(head.rpn_conv)]
        return [conv_stage(m) for m in head.rpn_conv]

    def _roi(self, x, y, images: Sequence[Tensor], read: Tensor, recipe: Recipe) -> None:
        old, new = self.teacher.net.roi_head, self.student.net.roi_head
        held = [held_out(i) for i in range(len(x))]
        per_image = max(1, _MAX_ROIS // sum(len(b) for b in images))
        boxes = []
        for feats, batch in zip(x, images, strict=True):
            probe = self._propose(Memory(feats=feats, image_size=tuple(batch.shape[-2:])))
            boxes.append(bbox2roi([b[:per_image] for b in probe.boxes]))
        if not sum(len(b) for b in boxes):
            raise ValueError(
                'The teacher proposes no region on the synthetic images: its RoI head cannot be '
                'inherited.'
            )
        for extractor, branch in (
            ('bbox_roi_extractor', 'bbox_head'),
            ('mask_roi_extractor', 'mask_head'),
        ):
            head, own = getattr(old, branch, None), getattr(new, branch, None)
            if head is None or own is None:
                continue
            crops = []
            for roi_head, pyramids in ((old, x), (new, y)):
                extract = getattr(roi_head, extractor, None) or roi_head.bbox_roi_extractor
                crops.append(
                    [
                        extract(feats[: extract.num_inputs], rois)
                        for feats, rois in zip(pyramids, boxes, strict=True)
                    ]
                )
            stages = [self._box_stages, self._mask_stages][branch == 'mask_head']
            (theirs, outputs), (ours, own_outputs) = stages(head), stages(own)
            inherit_chain(
                theirs,
                ours,
                list(zip(outputs, own_outputs, strict=True)),
                tuple(crops),
                held,
                read,
                recipe,
            )

    @staticmethod
    def _box_stages(head: nn.Module) -> tuple[list[Stage], list[nn.Module]]:
        branches = [
            len(getattr(head, n, ())) for n in ('cls_convs', 'cls_fcs', 'reg_convs', 'reg_fcs')
        ]
        if any(branches) or head.with_avg_pool or not hasattr(head, 'shared_fcs'):
            raise ValueError(
                'Inheritance supports box heads whose convolutions and linear layers are shared '
                'by classification and '
                'regression (Shared2FCBBoxHead, Shared4Conv1FCBBoxHead), not this '
                f'{type(head).__name__}.'
            )
        stages = [conv_stage(m) for m in head.shared_convs] + [Stage(fc) for fc in head.shared_fcs]
        return stages, [
            m
            for m in (getattr(head, 'fc_cls', None), getattr(head, 'fc_reg', None))
            if m is not None
        ]

    @staticmethod
    def _mask_stages(head: nn.Module) -> tuple[list[Stage], list[nn.Module]]:
        stages = [conv_stage(m) for m in head.convs]
        if head.upsample is not None:
            if not isinstance(head.upsample, nn.ConvTranspose2d):
                raise ValueError(
                    'Inheritance supports mask heads that upsample by deconvolution, not '
                    f'{head.upsample_method}.'
                )
            stages.append(Stage(head.upsample))
        return stages, [head.conv_logits]

    def agreement(
        self, images: Sequence[Tensor], maps: PyramidMap | None
    ) -> dict[str, float | list[float]]:
        """Compare both networks on ``images``."""
        same, gap, count = 0.0, 0.0, 0
        cosines, cells = None, 0
        for batch in images:
            theirs, ours = self.teacher.encode(batch), self.student.encode(batch)
            probe = self._propose(theirs)
            a, b = (
                adapter.answer(memory, probe).logits.softmax(-1)
                for adapter, memory in ((self.teacher, theirs), (self.student, ours))
            )
            same += float((a.argmax(-1) == b.argmax(-1)).sum())
            gap += float((a[:, -1] - b[:, -1]).abs().sum())
            count += len(a)
            level = [
                float(
                    F.cosine_similarity(p, torch.einsum('dc,bchw->bdhw', maps.read.to(q), q)).mean()
                )
                * len(batch)
                for p, q in zip(theirs.feats, ours.feats, strict=True)
            ]
            cosines = (
                level if cosines is None else [c + n for c, n in zip(cosines, level, strict=True)]
            )
            cells += len(batch)
        count = max(count, 1)
        return dict(
            roi_class=same / count,
            foreground_gap=gap / count,
            pyramid_cosine=[c / cells for c in cosines],
        )


def build_heir(teacher: Adapter, student: Adapter) -> Heir:
    """Choose the class for two adapters of one family.

    Raises:
        ValueError: If the families differ or have no inheritance, or the sizes do not allow it.
    """
    if teacher.family != student.family:
        raise ValueError(
            f'The teacher is a {teacher.family}, the student a {student.family}: they must be of '
            'one family.'
        )
    # Here, as it builds on the classes above.
    from .detr import DetrHeir
    from .swin import SwinHeir

    heirs = {'classifier': ClassifierHeir, 'two-stage': TwoStageHeir, 'DETR-like': DetrHeir}
    if teacher.family not in heirs:
        raise ValueError(
            f"Inheritance does not support the family '{teacher.family}'. Supported: "
            f'{", ".join(heirs)}.'
        )
    for net in (teacher.net, student.net):
        if isinstance(getattr(getattr(net, 'roi_head', None), 'bbox_head', None), nn.ModuleList):
            raise ValueError(
                f'Inheritance does not support the stages of a cascade ({type(net).__name__}): '
                "set model.student.init to 'random', 'config' or a checkpoint."
            )
    if type(getattr(teacher.net, 'backbone', None)).__name__ == 'SwinTransformer':
        heirs['classifier'] = SwinHeir
    heir = heirs[teacher.family](teacher, student)
    heir.check()
    return heir
