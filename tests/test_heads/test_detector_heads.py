"""Masks, cascade stages, FGD and answers across families, between tiny detectors."""

import math

import pytest
import torch
import toy
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmengine.structures import InstanceData
from test_dense_heads import overlap
from tiny_runs import ROOT

from mmdfkd.adapters import Normalizer, Observation, Targets, TwoStageAdapter, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.heads import FGDHead, PyramidHead
from mmdfkd.inheritance import inherit, shrink_config
from mmdfkd.losses import box_places, fgd_focal
from mmdfkd.registry import MODELS

PIXELS = toy.images(2)


def adapter_of(model, seed=0):
    net = toy.build(model, seed).requires_grad_(seed > 0)
    return build_adapter(net, Normalizer.from_config(toy.whole(model)))


def student_of(teacher, model, *heads, seed=1):
    adapter = adapter_of(model, seed)
    student = Student(adapter.net, adapter.normalizer, [MODELS.build(dict(h)) for h in heads])
    student.build_aligners(teacher, (toy.SIZE, toy.SIZE))
    return student.eval()


@pytest.fixture(scope='module')
def cascade():
    return adapter_of(toy.cascade_model())


@pytest.fixture(scope='module')
def seen(cascade):
    return cascade.observe(PIXELS)


def test_a_cascade_is_run_as_mmdet_runs_it(cascade, seen):
    assert isinstance(cascade, TwoStageAdapter) and len(seen.response.stages) == 2
    roi_head = cascade.net.roi_head
    memory, probe = seen.memory, seen.probe
    rois, scores, deltas = roi_head._refine_roi(
        memory.feats,
        bbox2roi(probe.boxes),
        [dict(img_shape=memory.image_size)] * 2,
        tuple(len(b) for b in probe.boxes),
    )
    torch.testing.assert_close(
        torch.cat(probe.moved[0]),
        rois[0].new_tensor([]) if not len(rois) else torch.cat(list(rois))[:, 1:],
    )
    torch.testing.assert_close(seen.response.logits, torch.cat(scores))
    torch.testing.assert_close(seen.response.deltas, torch.cat(deltas))
    assert len(cascade.detect(memory)) == 2


def test_layouts_of_a_cascade_reach_the_pixels(cascade):
    pixels = PIXELS.clone().requires_grad_()
    boxes = [torch.tensor([[6.0, 6.0, 30.0, 28.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([1]), torch.zeros(0, dtype=torch.long)]
    loss = cascade.target_loss(cascade.encode(pixels), Targets(boxes=boxes, box_labels=labels))
    loss.sum().backward()
    assert loss.shape == (2,) and all(g.abs().sum() > 0 for g in pixels.grad)


def test_every_stage_is_compared_where_the_teacher_moved_its_boxes(cascade, seen):
    student = student_of(cascade, toy.cascade_model(24), dict(type='mmdfkd.RoIResponseHead'))
    found = student(PIXELS, seen, Targets())
    feats = student.adapter.encode(PIXELS).feats
    cls = box = 0.0
    for stage, boxes in enumerate((seen.probe.boxes, seen.probe.moved[0])):
        out = student.net.roi_head._bbox_forward(stage, feats, bbox2roi(boxes))
        z_t, d_t = (x.double() for x in seen.response.stages[stage])
        p, q = out['cls_score'].double().softmax(-1), z_t.softmax(-1)
        cls += (q * (q.log() - p.log())).sum(-1).mean() / 2
        gap = (out['bbox_pred'].double() - d_t).abs()
        apart = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean(-1)
        weight = q[:, :-1].sum(-1)
        box += (apart * weight).sum() / weight.sum() / 2
    assert float(found['loss_roi_cls'].detach()) == pytest.approx(float(cls), rel=1e-4)
    assert float(found['loss_roi_bbox'].detach()) == pytest.approx(float(box), rel=1e-4)
    sum(found.values()).backward()
    heads = [p.grad for h in student.net.roi_head.bbox_head for p in h.parameters()]
    assert all(g is not None and g.any() for g in heads)
    assert all(p.grad is None for p in cascade.net.parameters())


def test_masks_are_their_equation(cascade, seen):
    student = student_of(
        cascade, toy.cascade_model(24), dict(type='mmdfkd.MaskResponseHead', regions=3)
    )
    found = student(PIXELS, seen, Targets())['loss_mask']
    probabilities = seen.response.logits.double().softmax(-1)[:, :-1]
    boxes, rows = [], []
    for own, part in zip(
        seen.probe.moved[0], probabilities.split([len(b) for b in seen.probe.boxes]), strict=True
    ):
        best = part.sum(1).argsort(descending=True)[:3]
        boxes.append(own[best])
        rows.append(part[best])
    rows, total = torch.cat(rows), 0.0
    feats = student.adapter.encode(PIXELS).feats
    for stage in range(2):
        maps = [
            net.roi_head._mask_forward(stage, f, bbox2roi(boxes))['mask_preds'].double()
            for net, f in ((student.net, feats), (cascade.net, seen.memory.feats))
        ]
        up = down = 0.0
        for i, row in enumerate(rows):
            p, q = (m[i, row.argmax()].sigmoid() for m in maps)
            kl = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
            up, down = up + row.sum() * kl.sum(), down + row.sum() * kl.numel()
        total += up / down / 2
    assert float(found.detach()) == pytest.approx(float(total.detach()), rel=1e-4)
    found.backward()
    convs = [m.convs[0].conv.weight.grad for m in student.net.roi_head.mask_head]
    assert all(g is not None and g.any() for g in convs)
    assert all(p.grad is None for p in cascade.net.parameters())


HEADS = (
    dict(type='mmdfkd.RoIResponseHead'),
    dict(type='mmdfkd.MaskResponseHead'),
    dict(type='mmdfkd.BoxResponseHead'),
    dict(type='mmdfkd.FGDHead', threshold=0.99),
)


def test_a_batch_without_any_object_keeps_graph_and_gradients(cascade):
    teacher = adapter_of(toy.cascade_model())
    # No box is as large: nothing is proposed, and nothing detected.
    teacher.net.rpn_head.test_cfg.min_bbox_size = 1000
    student = student_of(teacher, toy.cascade_model(24), *HEADS)
    theirs = teacher.observe(PIXELS)
    assert sum(map(len, theirs.detections)) == 0
    losses = student(PIXELS, theirs, Targets())
    sum(losses.values()).backward()
    parts = ('backbone', 'neck', 'roi_head')
    missing = [
        n for n, p in student.net.named_parameters() if n.startswith(parts) and p.grad is None
    ]
    assert missing == []
    silent = ('loss_roi_cls', 'loss_mask', 'loss_box_cls', 'loss_box_giou', 'loss_fgd_foreground')
    assert all(float(losses[name].detach()) == 0 for name in silent)
    assert losses['loss_fgd_background'] > 0


def test_a_single_stage_and_a_cascade(cascade, seen):
    """The first stages pair; a student's own further stages get a gradient of zero."""
    plain = toy.detector_model(24, 1, mask=True)
    plain['roi_head']['bbox_head']['reg_class_agnostic'] = True
    student = student_of(cascade, plain, *HEADS[:2])
    assert set(student(PIXELS, seen, Targets())) == {'loss_roi_cls', 'loss_roi_bbox', 'loss_mask'}
    teacher = adapter_of(plain)
    student = student_of(teacher, toy.cascade_model(24), *HEADS[:1])
    sum(student(PIXELS, teacher.observe(PIXELS), Targets()).values()).backward()
    last = student.net.roi_head.bbox_head[1].fc_cls.weight.grad
    assert last is not None and not last.any()


def with_zero(logits):
    """Sigmoids beside a background of zero."""
    return torch.cat([logits, logits.new_zeros(len(logits), 1)], 1)


def at_places(adapter, memory, probe, labels=None):
    """A dense network's rows: of the place whose box is nearest."""
    answers = adapter.ask(memory)
    rows = []
    for b, wanted in enumerate(probe.boxes):
        for box in wanted:
            best = overlap(answers.boxes[b], box).argmax()
            rows.append((answers.logits[b, best], answers.boxes[b, best]))
    logits, boxes = (torch.stack(x) for x in zip(*rows, strict=True))
    return with_zero(logits), boxes.double()


def at_queries(adapter, memory, probe, labels=None):
    """A DETR's rows: of the query that is nearest by 5 L1 in shares and 2 GIoU."""
    net, encoder = adapter.net, adapter.encoded(memory)
    inputs, _ = net.pre_decoder(**encoder.before_decoder)
    logits, boxes = net.bbox_head(**net.forward_decoder(**{**encoder.decoder, **inputs}))
    h, w = memory.image_size
    scale, rows = boxes.new_tensor([w, h, w, h]), []
    for b, wanted in enumerate(probe.boxes):
        x, y, width, height = boxes[-1, b].unbind(-1)
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        corners = torch.stack(corners, -1)
        for box in wanted.double() / scale:
            middle = torch.cat([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])
            far = 5 * (boxes[-1, b] - middle).abs().sum(-1) - 2 * overlap(corners, box)
            rows.append((logits[-1, b, far.argmin()], corners[far.argmin()] * scale))
    logits, boxes = (torch.stack(x) for x in zip(*rows, strict=True))
    return logits if logits.shape[1] == 4 else with_zero(logits), boxes


def at_regions(adapter, memory, probe, labels=None):
    """A RoI head's rows, stage by stage, each where its surest or a given class moves the box."""
    roi_head = adapter.net.roi_head
    h, w = memory.image_size
    cascade = isinstance(roi_head.bbox_head, torch.nn.ModuleList)
    heads = list(roi_head.bbox_head) if cascade else [roi_head.bbox_head]
    counts = [len(own) for own in probe.boxes]
    boxes, answers = torch.cat(list(probe.boxes)), []
    for stage, head in enumerate(heads):
        rois = bbox2roi(list(boxes.split(counts)))
        out = roi_head._bbox_forward(*((stage,) if cascade else ()), memory.feats, rois)
        answers.append(out['cls_score'])
        moved = []
        classes = answers[-1][:, :3].argmax(1) if labels is None else labels
        for box, label, deltas in zip(boxes, classes.tolist(), out['bbox_pred'], strict=True):
            # Of Faster R-CNN a box for each class.
            label = 0 if head.reg_class_agnostic else label
            dx, dy, dw, dh = deltas[4 * label : 4 * label + 4] * deltas.new_tensor(
                head.bbox_coder.stds
            )
            size, centre = box[2:] - box[:2], (box[:2] + box[2:]) / 2
            centre = centre + torch.stack([dx, dy]) * size
            most = -math.log(16 / 1000)
            half = size * torch.stack([dw, dh]).clamp(-most, most).exp() / 2
            low, high = ((centre + sign * half).clamp_min(0) for sign in (-1, 1))
            limit = box.new_tensor([w, h])
            moved.append(torch.cat([low.minimum(limit), high.minimum(limit)]))
        # A student's stage is asked where the teacher's before it moved the boxes.
        given = stage < len(probe.moved)
        boxes = torch.cat(list(probe.moved[stage])) if given else torch.stack(moved)
    return sum(answers) / len(answers), torch.stack(moved)


BOX_PAIRS = dict(
    dense=(toy.detr_model('deformable'), toy.one_stage_model('retina'), at_places),
    regions=(toy.detr_model('deformable'), toy.detector_model(24), at_regions),
    stages=(toy.detr_model('deformable'), toy.cascade_model(24), at_regions),
    queries=(toy.detector_model(), toy.detr_model('detr'), at_queries),
    sigmoids=(toy.detector_model(), toy.detr_model('deformable'), at_queries),
    moved=(toy.cascade_model(), toy.cascade_model(24), at_regions),
)


@torch.no_grad()
@pytest.mark.parametrize('pair', BOX_PAIRS)
def test_boxes_are_compared_across_families(pair):
    """Rows at the teacher's boxes, of images that are not square and get padded."""
    taught, learning, rows_of = BOX_PAIRS[pair]
    teacher = adapter_of(taught)
    head = dict(type='mmdfkd.BoxResponseHead', floor=0.2, temperature=2.0)
    student = student_of(teacher, learning, head).double()
    teacher.net.double()
    images = PIXELS[..., :40, :].double()
    theirs = teacher.observe(images)
    found = student(images, theirs, Targets())
    memory = student.adapter.encode(images)
    if pair in ('dense', 'regions', 'stages'):
        last = theirs.response.asked
        z_t, (x, y, w, h) = with_zero(last.logits[-1].flatten(0, 1)), last.boxes[-1].unbind(-1)
        other = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).flatten(0, 1)
        other = other * torch.tensor([48.0, 40.0, 48.0, 40.0])
    else:
        z_t, other = at_regions(teacher, theirs.memory, theirs.probe)
    # A student with a box for each class follows in that of the teacher's.
    z_s, own = rows_of(student.adapter, memory, theirs.probe, z_t[:, :-1].argmax(1))
    assert len(z_s) == len(z_t) > 10 and z_s.dtype == z_t.dtype == torch.float64
    weight = z_t.softmax(-1)[:, :-1].amax(-1)
    floored = 0.2 + 0.8 * weight
    p, q = ((z / 2).softmax(-1) for z in (z_s, z_t))
    cls = 4 * (q * (q.log() - p.log())).sum(-1)

    def shares(boxes):
        """``(cx, cy, w, h)`` in shares of the image; sides that passed each other meet."""
        low, high = (x / boxes.new_tensor([48, 40]) for x in boxes.split(2, -1))
        return torch.cat([(low + high) / 2, (high - low).clamp_min(0)], -1)

    l1 = (shares(own) - shares(other)).abs().mean(-1)
    giou = 1 - overlap(own, other)
    wanted = dict(
        cls=(floored * cls).sum() / floored.sum(),
        l1=5 * (weight * l1).sum() / weight.sum(),
        giou=2 * (weight * giou).sum() / weight.sum(),
    )
    assert len(found) == 3
    for name, value in wanted.items():
        assert float(found[f'loss_box_{name}']) == pytest.approx(float(value), rel=1e-6)


def views(seed, channels=3, boxes=True):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, channels, 6, 8, generator=generator)
    found = [
        InstanceData(
            bboxes=torch.tensor([[8.0, 8.0, 24.0, 32.0], [0.0, 0.0, 40.0, 40.0]]),
            scores=torch.tensor([0.9, 0.8]),
            labels=torch.tensor([0, 1]),
        ),
        InstanceData(
            bboxes=torch.zeros(0, 4),
            scores=torch.zeros(0),
            labels=torch.zeros(0, dtype=torch.long),
        ),
    ]
    from mmdfkd.adapters import Memory

    return Observation(Memory((maps,), (48, 64)), find_detections=lambda: found if boxes else [])


def test_fgd_is_its_equation():
    torch.manual_seed(0)
    head = FGDHead(foreground_weight=3.0, global_weight=2.0)
    head.build_aligners({'neck': [3]}, {'neck': [3]})
    for parameter in head.double().parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    own, other = views(1), views(2)
    for view in (own, other):
        view.memory.feats = tuple(f.double() for f in view.memory.feats)
    images = torch.zeros(2, 3, 48, 64)
    found = head(own, other, Targets(), images)
    s, t = own.memory.feats[0], other.memory.feats[0]
    energy = float((t**2).mean())

    def masks(f):
        where = (f.abs().mean(1).flatten(1) / 0.5).softmax(1).view(2, 6, 8) * 48
        return where, (f.abs().mean((2, 3)) / 0.5).softmax(1) * 3

    (where_s, what_s), (where_t, what_t) = masks(s), masks(t)
    front = back = 0.0
    for n in range(2):
        weight = torch.zeros(6, 8, dtype=torch.float64)
        if n == 0:
            # Cells of 8 px: one object of 2 x 3 cells inside one of 5 x 5.
            weight[0:5, 0:5] = 1 / 25
            weight[1:4, 1:3] = 1 / 6
        rest = (weight == 0).double()
        for y in range(6):
            for x in range(8):
                gap = (what_t[n] * (t[n, :, y, x] - s[n, :, y, x]) ** 2).mean()
                gap = float(where_t[n, y, x] * gap) / energy
                front += gap * float(weight[y, x]) / max(float(weight.sum()), 1e-9) / 2
                back += gap * float(rest[y, x]) / float(rest.sum()) / 2
    assert float(found['loss_fgd_foreground']) == pytest.approx(3 * front, rel=1e-6)
    assert float(found['loss_fgd_background']) == pytest.approx(0.5 * back, rel=1e-6)
    gap = (where_s - where_t).abs().mean() + (what_s - what_t).abs().mean()
    assert float(found['loss_fgd_attention']) == pytest.approx(0.5 * float(gap), rel=1e-6)

    block = head.contexts[0]

    def context(f):
        out = f.clone()
        for n in range(2):
            score = torch.einsum('c,chw->hw', block.where.weight[0, :, 0, 0], f[n])
            share = (score + block.where.bias).flatten().softmax(0)
            summed = f[n].flatten(1) @ share
            one, norm, _, two = block.change
            z = one.weight @ summed + one.bias
            z = (z - z.mean()) / (z.var(unbiased=False) + norm.eps).sqrt()
            z = (z * norm.weight + norm.bias).clamp_min(0)
            out[n] = f[n] + (two.weight @ z + two.bias)[:, None, None]
        return out

    a, b = context(s), context(t)
    wanted = 2 * ((a - b) ** 2).mean() / (b**2).mean()
    assert found['loss_fgd_global'].item() == pytest.approx(wanted.item(), rel=1e-6)


def test_fgd_boxes_lie_where_they_are_on_padded_maps():
    """An image of 40 x 56 px was fed as 48 x 64: a cell stands for 8 px, not for 7."""
    head = FGDHead(foreground_weight=1.0, global_weight=0.0)
    head.build_aligners({'neck': [3]}, {'neck': [3]})
    found = {}
    for size in ((40, 56), (48, 64)):
        own, other = views(1), views(2)
        for view in (own, other):
            view.memory.image_size, view.memory.input_size = size, (48, 64)
        losses = head(own, other, Targets(), torch.zeros(2, 3, *size))
        found[size] = float(losses['loss_fgd_foreground'])
    assert found[40, 56] == found[48, 64] > 0


def test_fgd_takes_the_boxes_it_is_told_to():
    layout = Targets(boxes=[torch.tensor([[0.0, 0.0, 16.0, 16.0]])] * 2)
    assert len(FGDHead().objects(views(0), layout)[0]) == 1
    assert len(FGDHead(boxes='teacher').objects(views(0), layout)[0]) == 2
    assert len(FGDHead(threshold=0.85).objects(views(0), Targets())[0]) == 1
    (one,) = FGDHead(threshold=[0.95, 0.7]).objects(views(0), Targets())[0]
    assert one.tolist() == [0, 0, 40, 40]
    with pytest.raises(ValueError, match='not made to show boxes'):
        FGDHead(boxes='layout').objects(views(0), Targets())
    # An object smaller than a cell has the cell of its centre; one outside, the nearest.
    small = torch.tensor([[9.0, 9.0, 10.0, 10.0], [70.0, 50.0, 72.0, 52.0]])
    front, back = box_places(small, (6, 8), (48, 64))
    assert front[1, 1] == front[5, 7] == 0.5 and float(back.sum()) == pytest.approx(1)


def test_levels_pair_by_stride():
    """Faster R-CNN's P2 to P6 and RetinaNet's P3 to P7."""
    sizes = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    own = dict(neck=[4] * 5, neck_sizes=sizes[1:])
    other = dict(neck=[6] * 5, neck_sizes=sizes[:5])
    head = PyramidHead()
    head.build_aligners(own, other)
    assert head.pairs == ((0, 1), (1, 2), (2, 3), (3, 4))
    head = PyramidHead(levels=[-1, 1])
    head.build_aligners(own, other)
    assert head.pairs == ((3, 4), (0, 1))
    with pytest.raises(ValueError, match=r'pyramid of 5.*\[1, 2, 3, 4\]'):
        PyramidHead(levels=[0]).build_aligners(own, other)
    # No stride in common: by their order.
    shifted = dict(neck=[4] * 5, neck_sizes=[(h + 1, w + 1) for h, w in sizes[:5]])
    head = PyramidHead()
    head.build_aligners(shifted, other)
    assert head.pairs == tuple((i, i) for i in range(5))


def test_errors_name_head_and_network(cascade):
    plain = toy.detector_model(24, 1)
    with pytest.raises(ValueError, match='MaskResponseHead compares mask heads, but the student'):
        student_of(cascade, plain, dict(type='mmdfkd.MaskResponseHead'))
    with pytest.raises(ValueError, match=r'stage 0 of the student.*agnostic=False.*bbox_coder'):
        student_of(cascade, plain, dict(type='mmdfkd.RoIResponseHead'))
    retina = toy.one_stage_model('retina')
    with pytest.raises(ValueError, match=r'RoIResponseHead.*student is a RetinaNet'):
        student_of(cascade, retina, dict(type='mmdfkd.RoIResponseHead'))
    coder = plain['rpn_head']['bbox_coder']
    plain['rpn_head']['bbox_coder'] = dict(coder, target_stds=[0.5] * 4)
    with pytest.raises(ValueError, match="RPNResponseHead: the student's RPN codes boxes"):
        student_of(cascade, plain, dict(type='mmdfkd.RPNResponseHead'))


@pytest.mark.parametrize('changes', [dict(scales=[2]), dict(ratios=[0.5, 2.0])])
def test_other_anchors_of_the_same_number_are_refused(changes):
    """Their logits and deltas have one shape and mean something else."""
    teacher, plain = adapter_of(toy.detector_model(24, 1)), toy.detector_model(24, 1)
    student_of(teacher, plain, dict(type='mmdfkd.RPNResponseHead'))
    plain['rpn_head']['anchor_generator'].update(changes)
    with pytest.raises(ValueError, match=r"student's anchors, sides by stride, .* scales and rat"):
        student_of(teacher, plain, dict(type='mmdfkd.RPNResponseHead'))


def test_other_anchors_of_one_stage_detectors():
    heads = [toy.one_stage_model('retina') for _ in range(2)]
    generator = dict(heads[1]['bbox_head']['anchor_generator'], octave_base_scale=2)
    heads[1]['bbox_head']['anchor_generator'] = generator
    with pytest.raises(ValueError, match="DenseResponseHead: the student's anchors"):
        student_of(adapter_of(heads[0]), heads[1], dict(type='mmdfkd.DenseResponseHead'))
    # Distances from a place have no use for the sides of an anchor.
    gfl = toy.one_stage_model('gfl')
    other = dict(gfl['bbox_head']['anchor_generator'], octave_base_scale=2)
    other = toy.one_stage_model('gfl', anchor_generator=other)
    student_of(adapter_of(gfl), other, dict(type='mmdfkd.DenseResponseHead'))


def test_what_cannot_be_inherited_or_shrunk_is_said(cascade):
    student = adapter_of(toy.cascade_model(24))
    with pytest.raises(ValueError, match=r'stages of a cascade \(CascadeRCNN\).*checkpoint'):
        inherit(cascade, student, toy.images(8))
    for model in (toy.one_stage_model('retina'), toy.cascade_model()):
        with pytest.raises(ValueError, match='Give the student as a config of its own'):
            shrink_config(toy.whole(model))


@torch.no_grad()
def test_manifold_of_blocks_and_of_the_pyramid():
    """Of a shipped run, between two ViT detectors: cosines within an image and between images."""
    run = Config.fromfile(ROOT / 'configs' / 'manifold' / 'manifold_vitdet_digits.py')
    blocks, levels = (dict(h) for h in run.model.heads if h.type == 'mmdfkd.ManifoldHead')
    assert len(blocks['taps_student']) == 4 and levels['levels'] == (1, 2)
    names = ['backbone.blocks.0', 'backbone.blocks.1']
    blocks.update(taps_student=names, taps_teacher=names, random_weight=0.0)
    levels.update(levels=(1, 2), random_weight=0.0)
    teacher = adapter_of(toy.detector_model())
    student = student_of(teacher, toy.detector_model(24), blocks, levels)
    theirs = teacher.observe(PIXELS, names)
    found = student(PIXELS, theirs, Targets())
    own = student.adapter.encode(PIXELS, names)

    def cosines(tokens):
        tokens = tokens.double()
        return (tokens / tokens.norm(dim=-1, keepdim=True)) @ (
            tokens / tokens.norm(dim=-1, keepdim=True)
        ).mT

    def wanted(pairs):
        intra = [(cosines(s) - cosines(t)).square().mean() for s, t in pairs]
        inter = [
            (cosines(s.transpose(0, 1)) - cosines(t.transpose(0, 1))).square().mean()
            for s, t in pairs
        ]
        return 4 * sum(intra) / len(pairs), 0.1 * sum(inter) / len(pairs)

    tapped = [tuple(m.taps[n].flatten(1, 2) for m in (own, theirs.memory)) for n in names]
    maps = [
        tuple(m.feats[i].flatten(2).transpose(1, 2) for m in (own, theirs.memory)) for i in (1, 2)
    ]
    for prefix, pairs in (('loss_manifold', tapped), ('loss_pyramid_manifold', maps)):
        intra, inter = wanted(pairs)
        assert float(found[f'{prefix}_intra']) == pytest.approx(float(intra), rel=1e-4)
        assert float(found[f'{prefix}_inter']) == pytest.approx(float(inter), rel=1e-4)


def test_fgd_in_bfloat16_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 1, 3, 4, 5, generator=generator).double()
    places = [
        m[None].double() for m in box_places(torch.tensor([[8.0, 8, 24, 32]]), (4, 5), (32, 40))
    ]
    own.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fgd_focal(x, other, *places), own)
    halves = fgd_focal(own.detach().bfloat16(), other.bfloat16(), *places)
    assert all(value.isfinite() for value in halves)
    other.requires_grad_()
    sum(fgd_focal(own, other, *places)).backward()
    assert other.grad is None and own.grad is not None
    with pytest.raises(ValueError, match='align the widths'):
        fgd_focal(own, other[:, :2], *places)
    with pytest.raises(ValueError, match='positive'):
        fgd_focal(own, other, *places, temperature=0.0)
