"""Heads of dense one-stage detectors, between published networks made slim."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import toy
from mmdet.structures.bbox import bbox_overlaps

from mmdfkd.adapters import Normalizer, Observation, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.losses.dense import with_moments_of
from mmdfkd.registry import MODELS

SIZE = 64
PIXELS = toy.images(2, SIZE)
DENSE = dict(type='mmdfkd.DenseResponseHead')
CROSS = dict(type='mmdfkd.CrossKDHead', convs=1)


def adapter_of(kind, seed=0, **changes):
    model = toy.one_stage_model(kind, **changes)
    net = toy.build(model, seed).requires_grad_(seed > 0)
    return build_adapter(net, Normalizer.from_config(toy.whole(model)))


@cache
def teacher_of(kind):
    return adapter_of(kind)


def student_of(teacher, kind, *heads, seed=1, **changes):
    adapter = adapter_of(kind, seed, **changes)
    student = Student(adapter.net, adapter.normalizer, [MODELS.build(dict(h)) for h in heads])
    student.build_aligners(teacher, (SIZE, SIZE))
    return student


def seen(student, theirs):
    memory = student.adapter.encode(PIXELS)
    return Observation(memory, theirs.probe, student.adapter.answer(memory, theirs.probe))


def mean(values, weight):
    return float((values * weight).sum() / max(weight.sum(), 1e-3 * weight.numel()))


def bernoulli_kl(z_s, z_t):
    p, q = z_s.double().sigmoid(), z_t.double().sigmoid()
    return q * (q.log() - p.log()) + (1 - q) * ((1 - q).log() - (1 - p).log())


@torch.no_grad()
@pytest.mark.parametrize('kind', ['retina', 'fcos', 'gfl'])
def test_dense_is_its_equations(kind):
    teacher = teacher_of(kind)
    student = student_of(teacher, kind, dict(DENSE, floor=0.2, box_weight=3.0))
    theirs = teacher.observe(PIXELS)
    mine = seen(student, theirs)
    found = student.heads[0](mine, theirs, Targets(), PIXELS)
    own, other = mine.response.answers, theirs.response.answers
    evidence = other.logits.double().sigmoid().amax(-1)
    if kind == 'fcos':
        evidence = evidence * other.centerness.double().sigmoid()
        wanted = mean(bernoulli_kl(own.centerness, other.centerness), evidence)
        assert float(found['loss_dense_centerness']) == pytest.approx(wanted, rel=1e-4)
    else:
        assert set(found) == {'loss_dense_cls', 'loss_dense_bbox'}
    cls = mean(bernoulli_kl(own.logits, other.logits).sum(-1), 0.2 + 0.8 * evidence)
    assert float(found['loss_dense_cls']) == pytest.approx(cls, rel=1e-4)
    if kind == 'gfl':
        p, q = ((x.distributions.double() / 10).softmax(-1) for x in (own, other))
        apart = 100 * (q * (q.log() - p.log())).sum(-1).mean(-1)
    else:
        pair = own.boxes.double().flatten(0, 1), other.boxes.double().flatten(0, 1)
        giou = bbox_overlaps(*pair, mode='giou', is_aligned=True)
        apart = 1 - giou.unflatten(0, evidence.shape)
    assert float(found['loss_dense_bbox']) == pytest.approx(3 * mean(apart, evidence), rel=1e-3)


@torch.no_grad()
def test_gfl_teaches_fcos_but_not_one_of_another_grid():
    """Both have one place a position at the same strides; they code boxes differently."""
    teacher = teacher_of('gfl')
    student = student_of(teacher, 'fcos', DENSE)
    theirs = teacher.observe(PIXELS)
    losses = student(PIXELS, theirs, Targets())
    assert set(losses) == {'loss_dense_cls', 'loss_dense_bbox'}
    assert all(loss > 0 for loss in losses.values())
    ld = student_of(teacher, 'fcos', dict(DENSE, boxes='ld'))
    with pytest.raises(ValueError, match='heads of distributions'):
        ld(PIXELS, theirs, Targets())
    other = student_of(teacher, 'rtmdet', DENSE)
    with pytest.raises(ValueError, match=r'do not pair.*PseudoLabelHead'):
        other(PIXELS, theirs, Targets())


@torch.no_grad()
def test_agreement_costs_nothing():
    for kind in ('retina', 'gfl'):
        teacher = teacher_of(kind)
        student = student_of(teacher, kind, DENSE, dict(CROSS, classes='kl'), seed=0)
        theirs = teacher.observe(PIXELS)
        with torch.enable_grad():
            student.net.requires_grad_(True)
            losses = student.eval()(PIXELS, theirs, Targets())
        assert len(losses) == 4 and all(abs(float(v)) < 1e-3 for v in losses.values())


@pytest.mark.parametrize('convs', [0, 1, 2])
def test_cross_goes_through_the_teachers_head(convs):
    """Layer by layer, written out for GFL."""
    teacher = teacher_of('gfl')
    student = student_of(teacher, 'gfl', dict(CROSS, convs=convs)).eval()
    theirs = teacher.observe(PIXELS)
    mine = seen(student, theirs)
    cross = theirs.through(mine.memory, mine.response.towers, convs)
    head, ours = teacher.head, student.net.bbox_head
    logits, sides = [], []
    for level, (x, y) in enumerate(zip(mine.memory.feats, theirs.memory.feats, strict=True)):
        out = []
        for own, other in ((ours.cls_convs, head.cls_convs), (ours.reg_convs, head.reg_convs)):
            a, b = x, y
            for i in range(convs):
                a, b = own[i](a), other[i](b)
            a = with_moments_of(a, b)
            for i in range(convs, 2):
                a = other[i](a)
            out.append(a)
        logits.append(head.gfl_cls(out[0]).flatten(2).transpose(1, 2))
        sides.append(head.scales[level](head.gfl_reg(out[1])).flatten(2).transpose(1, 2))
    torch.testing.assert_close(cross.logits, torch.cat(logits, 1))
    torch.testing.assert_close(cross.distributions.flatten(2), torch.cat(sides, 1))

    found = student(PIXELS, theirs, Targets())
    other = theirs.response.answers
    evidence = other.logits.double().sigmoid().amax(-1)
    p, q = cross.logits.detach().double().sigmoid(), other.logits.double().sigmoid()
    focal = ((q - p).abs() * F.binary_cross_entropy(p, q, reduction='none')).sum(-1)
    wanted = mean(focal, 0.01 + 0.99 * evidence)
    assert float(found['loss_cross_cls'].detach()) == pytest.approx(wanted, rel=1e-3)
    sum(found.values()).backward()
    assert all(p.grad is None for p in teacher.net.parameters())
    reached = [float(m.conv.weight.grad.abs().sum()) > 0 for m in ours.cls_convs[:convs]]
    assert reached == [True] * convs and ours.gfl_cls.weight.grad is None
    # No hook stays behind.
    assert not any(m._forward_hooks for n in (head, ours) for m in n.modules())


@torch.no_grad()
@pytest.mark.parametrize('kind', ['gfl', 'fcos'])
def test_cross_boxes_and_centerness_are_their_equations(kind):
    """One convolution of the student's, then the teacher's head; all of it in float64."""
    teacher = teacher_of(kind)
    settings = dict(CROSS, box_weight=3.0, centerness_weight=2.0)
    student = student_of(teacher, kind, settings).eval()
    theirs = teacher.observe(PIXELS)
    with torch.enable_grad():
        found = student(PIXELS, theirs, Targets())
    mine = student.adapter.encode(PIXELS)
    head, ours = (copy.deepcopy(x).double() for x in (teacher.head, student.net.bbox_head))
    rows = dict(sides=([], []), scores=([], []), boxes=([], []), middles=([], []))

    def keep(name, which, maps):
        rows[name][which].append(maps.flatten(2).transpose(1, 2))

    for level, (x, y) in enumerate(zip(mine.feats, theirs.memory.feats, strict=True)):
        stride = head.prior_generator.strides[level][0]
        steps = [torch.arange(n, dtype=torch.float64) for n in y.shape[-2:]]
        v, u = torch.meshgrid(*((s + 0.5) * stride for s in steps), indexing='ij')
        towers = []
        for own, other in ((ours.cls_convs, head.cls_convs), (ours.reg_convs, head.reg_convs)):
            b = other[0](y.double())
            a = with_moments_of(own[0](x.double()), b)
            towers.append((other[1](a), other[1](b)))
        for which in range(2):
            cls, reg = (tower[which] for tower in towers)
            if kind == 'gfl':
                keep('scores', which, head.gfl_cls(cls))
                keep('sides', which, head.scales[level](head.gfl_reg(reg)))
                continue
            keep('scores', which, head.conv_cls(cls))
            # Centerness from the regression tower, distances in strides.
            keep('middles', which, head.conv_centerness(reg))
            left, up, right, down = (
                head.scales[level](head.conv_reg(reg)).clamp_min(0) * stride
            ).unbind(1)
            keep('boxes', which, torch.stack([u - left, v - up, u + right, v + down], 1))
    rows = {name: [torch.cat(x, 1) for x in both if x] for name, both in rows.items()}
    evidence = rows['scores'][1].sigmoid().amax(-1)
    if kind == 'gfl':
        p, q = (x.unflatten(-1, (4, -1)).softmax(-1) for x in rows['sides'])
        apart = (q * (q.log() - p.log())).sum(-1).mean(-1)
        assert set(found) == {'loss_cross_cls', 'loss_cross_bbox'}
    else:
        evidence = evidence * rows['middles'][1][..., 0].sigmoid()
        pair = [x.flatten(0, 1) for x in rows['boxes']]
        giou = bbox_overlaps(*pair, mode='giou', is_aligned=True)
        apart = 1 - giou.unflatten(0, evidence.shape)
        wanted = 2 * mean(bernoulli_kl(*(x[..., 0] for x in rows['middles'])), evidence)
        assert wanted > 1e-4
        assert float(found['loss_cross_centerness']) == pytest.approx(wanted, rel=1e-3)
    wanted = 3 * mean(apart, evidence)
    assert wanted > 1e-4 and float(found['loss_cross_bbox']) == pytest.approx(wanted, rel=1e-3)


def test_widths_and_depths_that_do_not_fit_are_refused():
    teacher = teacher_of('gfl')
    with pytest.raises(ValueError, match=r'5 levels of 8 channels.*5 of 16.*DenseResponseHead'):
        student_of(teacher, 'gfl', CROSS, width=8)
    with pytest.raises(ValueError, match='2 convolutions a tower, not 3'):
        student_of(teacher, 'gfl', dict(CROSS, convs=3))
    for bad in (dict(convs=-1), dict(classes='x'), dict(boxes='x'), dict(floor=2)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            MODELS.build(dict(CROSS, **bad))
    model = toy.detector_model()
    other = build_adapter(toy.build(model), Normalizer.from_config(toy.whole(model)))
    with pytest.raises(ValueError, match='not a FasterRCNN'):
        student_of(other, 'gfl', DENSE)


@pytest.mark.parametrize('kind', toy.ONE_STAGE)
def test_steps_of_a_student(kind):
    """Also where the teacher sees nothing at all; then the student is still reached."""
    teacher = teacher_of(kind)
    heads = [DENSE, dict(CROSS), dict(type='mmdfkd.PseudoLabelHead', threshold=0.2)]
    student = student_of(teacher, kind, *heads)
    student.freeze_unused(teacher, (SIZE, SIZE))
    trained = {n: p for n, p in student.net.named_parameters() if p.requires_grad}
    assert any('bbox_head' in n for n in trained) and any('neck' in n for n in trained)
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimiser = torch.optim.SGD(trained.values(), lr=1e-4)
    student.train()
    for _ in range(2):
        theirs = teacher.observe(PIXELS)
        losses = student(PIXELS, theirs, Targets())
        assert all(v.isfinite() for v in losses.values())
        optimiser.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
        optimiser.step()
    assert sum(not torch.equal(p, before[n]) for n, p in trained.items()) > 0.9 * len(trained)
    found = student.adapter.detect(student.eval().adapter.encode(PIXELS))
    assert len(found) == 2 and all(f.bboxes.shape[1] == 4 for f in found)

    theirs.response.answers.logits.fill_(-30.0)
    theirs.find_detections = lambda: [f[:0] for f in found]
    optimiser.zero_grad()
    empty = student.train()(PIXELS, theirs, Targets())
    sum(empty.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert float(empty['loss_dense_bbox'].detach()) < 1e-6
