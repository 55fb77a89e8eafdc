"""Heads of dense one-stage detectors, between published networks made slim."""

import math
from functools import cache

import pytest
import torch
import toy

from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.registry import MODELS

SIZE = 64
PIXELS = toy.images(2, SIZE)
DOUBLES = PIXELS.double()
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


def precise(net):
    """In float64; what GFL says of the sides, which is in float32 all the same, less flat."""
    if hasattr(net.bbox_head, 'gfl_reg'):
        net.bbox_head.gfl_reg.weight.data.mul_(10)
    return net.double().eval()


@cache
def precise_teacher(kind):
    adapter = adapter_of(kind)
    precise(adapter.net)
    return adapter


def precise_pair(kind, head):
    """A teacher, a student and what the teacher sees."""
    student, teacher = student_of(teacher_of(kind), kind, head), precise_teacher(kind)
    precise(student.net)
    return teacher, student, teacher.observe(DOUBLES)


# Equations, in float64 ----------------------------------------------------------------------------


def mean(values, weight):
    return float((values * weight).sum() / max(weight.sum(), 1e-3 * weight.numel()))


def bernoulli_kl(z_s, z_t):
    p, q = z_s.sigmoid(), z_t.sigmoid()
    return q * (q.log() - p.log()) + (1 - q) * ((1 - q).log() - (1 - p).log())


def focal(z_s, z_t, beta):
    """Quality focal loss of each place with the teacher's probabilities."""
    p, q = z_s.sigmoid(), z_t.sigmoid()
    return ((q - p).abs() ** beta * -(q * p.log() + (1 - q) * (1 - p).log())).sum(-1)


def sides_apart(d_s, d_t, temperature):
    """Divergence of each place's distributions, the mean of its four sides."""
    p, q = ((d / temperature).softmax(-1) for d in (d_s, d_t))
    return temperature**2 * (q * (q.log() - p.log())).sum(-1).mean(-1)


def overlap(boxes, others):
    """GIoU of xyxy boxes; sides that passed each other meet, the least area is mmdet's."""
    (ax, ay, au, av), (bx, by, bu, bv) = (x.double().unbind(-1) for x in (boxes, others))
    au, av, bu, bv = au.maximum(ax), av.maximum(ay), bu.maximum(bx), bv.maximum(by)
    width, height = au.minimum(bu) - ax.maximum(bx), av.minimum(bv) - ay.maximum(by)
    both = width.clamp_min(0) * height.clamp_min(0)
    union = ((au - ax) * (av - ay) + (bu - bx) * (bv - by) - both).clamp_min(1e-6)
    hull = (au.maximum(bu) - ax.minimum(bx)) * (av.maximum(bv) - ay.minimum(by))
    return both / union - (hull.clamp_min(1e-6) - union) / hull.clamp_min(1e-6)


def restandardised(maps, others):
    """Each channel with mean and deviation of the other's, over batch and places."""

    def moments(x):
        rows = x.transpose(0, 1).flatten(1)
        means = [row.sum() / len(row) for row in rows]
        spread = [((row - m) ** 2).sum() / len(row) for row, m in zip(rows, means, strict=True)]
        least = 1e-3 * sum(spread) / len(spread) + 1e-6
        return list(zip(means, [(v + least).sqrt() for v in spread], strict=True))

    pairs = zip(moments(maps), moments(others), strict=True)
    channels = [
        (maps[:, c] - mean) / deviation * other_deviation + other_mean
        for c, ((mean, deviation), (other_mean, other_deviation)) in enumerate(pairs)
    ]
    return torch.stack(channels, 1)


def convolved(head, tower, level, x, steps):
    """What some convolutions of a tower make of a level's map; RTMDet has one for each level."""
    convs = getattr(head, f'{tower}_convs')
    for conv in list(convs[level] if isinstance(convs[0], torch.nn.ModuleList) else convs)[steps]:
        x = conv(x)
    return x


def predicted(kind, head, level, cls, reg):
    """Of both towers' ends: logits ``[B, N, classes]``, sides or boxes, and centerness or None."""
    stride = head.prior_generator.strides[level][0]
    # RetinaNet's anchors and RTMDet's points begin at the corner.
    offset = 0.5 if kind in ('fcos', 'gfl') else 0.0
    v, u = ((torch.arange(n).double() + offset) * stride for n in cls.shape[-2:])
    v, u = v[:, None], u[None]

    def rows(maps, width):
        return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, width)

    if kind == 'retina':
        boxes = []
        for i, base in enumerate(head.prior_generator.base_anchors[level].double()):
            w, h = base[2:] - base[:2]
            dx, dy, dw, dh = head.retina_reg(reg)[:, 4 * i : 4 * i + 4].unbind(1)
            most = -math.log(16 / 1000)
            w_s, h_s = w * dw.clamp(-most, most).exp(), h * dh.clamp(-most, most).exp()
            x = u + (base[0] + base[2]) / 2 + dx * w
            y = v + (base[1] + base[3]) / 2 + dy * h
            boxes.append(torch.stack([x - w_s / 2, y - h_s / 2, x + w_s / 2, y + h_s / 2], -1))
        boxes = torch.stack(boxes, 3).flatten(1, 3)
        return rows(head.retina_cls(cls), 3), boxes, None
    middles = None
    if kind == 'gfl':
        sides = head.scales[level](head.gfl_reg(reg))
        return rows(head.gfl_cls(cls), 3), rows(sides, 4 * 17).unflatten(-1, (4, 17)), None
    if kind == 'fcos':
        # Centerness from the regression tower, distances in strides.
        logits, sides = head.conv_cls(cls), head.scales[level](head.conv_reg(reg)).clamp_min(0)
        middles = rows(head.conv_centerness(reg), 1)[..., 0]
    else:
        logits, sides = head.rtm_cls[level](cls), head.rtm_reg[level](reg)
    left, up, right, down = (sides * stride).unbind(1)
    boxes = torch.stack([u - left, v - up, u + right, v + down], 1)
    return rows(logits, 3), rows(boxes, 4), middles


@torch.no_grad()
def crossed(kind, student, theirs, head, convs, restandardise=True):
    """The teacher's answers to the student's features, and its own, level after level."""
    feats, ours = student.adapter.encode(DOUBLES).feats, student.net.bbox_head
    levels = [], []
    for level, (x, y) in enumerate(zip(feats, theirs.memory.feats, strict=True)):
        ends = [], []
        for tower in ('cls', 'reg'):
            a = convolved(ours, tower, level, x, slice(convs))
            b = convolved(head, tower, level, y, slice(convs))
            a = restandardised(a, b) if restandardise else a
            for end, maps in zip(ends, (a, b), strict=True):
                end.append(convolved(head, tower, level, maps, slice(convs, None)))
        for found, end in zip(levels, ends, strict=True):
            found.append(predicted(kind, head, level, *end))
    return [
        [None if parts[0] is None else torch.cat(parts, 1) for parts in zip(*found, strict=True)]
        for found in levels
    ]


DENSE_CASES = [
    *((kind, dict(floor=0.2, box_weight=3.0)) for kind in toy.ONE_STAGE),
    *((kind, dict(temperature=2.5, box_temperature=4.0)) for kind in ('retina', 'gfl')),
    *((kind, dict(classes='qfl', cls_weight=2.0)) for kind in ('gfl', 'rtmdet')),
    ('rtmdet', dict(classes='qfl', beta=2.0, floor=0.3)),
    ('gfl', dict(boxes='giou')),
]


@torch.no_grad()
@pytest.mark.parametrize(('kind', 'settings'), DENSE_CASES)
def test_dense_is_its_equations(kind, settings):
    _, student, theirs = precise_pair(kind, dict(DENSE, **settings))
    mine = student.adapter.answer(student.adapter.encode(DOUBLES), theirs.probe)
    found = student(DOUBLES, theirs, Targets())
    own, other = mine.answers, theirs.response.answers
    assert own.logits.dtype == torch.float64
    evidence = other.logits.sigmoid().amax(-1)
    if kind == 'fcos':
        evidence = evidence * other.centerness.sigmoid()
        wanted = mean(bernoulli_kl(own.centerness, other.centerness), evidence)
        assert float(found['loss_dense_centerness']) == pytest.approx(wanted, rel=1e-6)
    else:
        assert set(found) == {'loss_dense_cls', 'loss_dense_bbox'}
    if settings.get('classes') == 'qfl':
        rows = focal(own.logits, other.logits, settings.get('beta', 1.0))
    else:
        t = settings.get('temperature', 1.0)
        rows = t**2 * bernoulli_kl(own.logits / t, other.logits / t).sum(-1)
    floor = settings.get('floor', 0.01)
    wanted = settings.get('cls_weight', 1.0) * mean(rows, floor + (1 - floor) * evidence)
    assert float(found['loss_dense_cls']) == pytest.approx(wanted, rel=1e-6)
    if kind == 'gfl' and 'boxes' not in settings:
        sides = own.distributions.double(), other.distributions.double()
        apart = sides_apart(*sides, settings.get('box_temperature', 10.0))
    else:
        apart = 1 - overlap(own.boxes, other.boxes)
    wanted = settings.get('box_weight', 1.0) * mean(apart, evidence)
    # What boxes are made of is in float32, whatever the network.
    assert float(found['loss_dense_bbox']) == pytest.approx(wanted, rel=1e-5)


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
@pytest.mark.parametrize('kind', toy.ONE_STAGE)
def test_cross_goes_through_the_teachers_head(kind, convs):
    """Layer by layer, and what reaches the student of it."""
    teacher, student, theirs = precise_pair(kind, dict(CROSS, convs=convs))
    memory = student.adapter.encode(DOUBLES)
    towers = student.adapter.answer(memory, theirs.probe).towers
    for restandardise in (True, False):
        cross = theirs.through(memory, towers, convs, restandardise)
        (logits, places, middles), _ = crossed(
            kind, student, theirs, teacher.head, convs, restandardise
        )
        torch.testing.assert_close(cross.logits, logits, rtol=1e-9, atol=1e-9)
        coded = cross.distributions if kind == 'gfl' else cross.boxes
        torch.testing.assert_close(coded.double(), places, rtol=1e-5, atol=1e-4)
        if kind == 'fcos':
            torch.testing.assert_close(cross.centerness, middles, rtol=1e-9, atol=1e-9)

    sum(student(DOUBLES, theirs, Targets()).values()).backward()
    assert all(p.grad is None for p in teacher.net.parameters())
    ours = student.net.bbox_head
    grads = {n: p.grad for n, p in ours.named_parameters()}
    passed = [n for n, g in grads.items() if g is not None]
    assert all('_convs.' in n for n in passed) and bool(passed) == (convs > 0)
    for tower in ('cls', 'reg'):
        whole = getattr(ours, f'{tower}_convs')
        for steps in whole if kind == 'rtmdet' else [whole]:
            weights = [m.conv.weight.grad for m in steps]
            assert [g is not None and bool(g.any()) for g in weights] == [
                i < convs for i in range(2)
            ]
    # No hook stays behind.
    assert not any(m._forward_hooks for n in (teacher.head, ours) for m in n.modules())


@torch.no_grad()
@pytest.mark.parametrize('kind', toy.ONE_STAGE)
def test_cross_losses_are_their_equations(kind):
    """One convolution of the student's, then the teacher's head."""
    settings = dict(CROSS, box_weight=3.0, centerness_weight=2.0)
    teacher, student, theirs = precise_pair(kind, settings)
    with torch.enable_grad():
        found = student(DOUBLES, theirs, Targets())
    own, other = crossed(kind, student, theirs, teacher.head, 1)
    evidence = other[0].sigmoid().amax(-1)
    names = {'loss_cross_cls', 'loss_cross_bbox'}
    if kind == 'fcos':
        evidence = evidence * other[2].sigmoid()
        wanted = 2 * mean(bernoulli_kl(own[2], other[2]), evidence)
        assert wanted > 1e-4
        assert float(found['loss_cross_centerness']) == pytest.approx(wanted, rel=1e-6)
        names.add('loss_cross_centerness')
    assert set(found) == names
    wanted = mean(focal(own[0], other[0], 1.0), 0.01 + 0.99 * evidence)
    assert wanted > 1e-4 and float(found['loss_cross_cls']) == pytest.approx(wanted, rel=1e-6)
    pair = own[1], other[1]
    apart = sides_apart(*pair, 1.0) if kind == 'gfl' else 1 - overlap(*pair)
    wanted = 3 * mean(apart, evidence)
    # What boxes are made of is in float32, whatever the network.
    assert wanted > 1e-4 and float(found['loss_cross_bbox']) == pytest.approx(wanted, rel=1e-5)


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
