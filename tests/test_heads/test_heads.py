"""Distill heads on observations of known content."""

import math

import pytest
import torch
from torch import nn

from mmdfkd.adapters import Memory, Observation, Probe, Response, Targets
from mmdfkd.heads import (
    DistillHead,
    FeatureHead,
    LogitHead,
    Needs,
    PyramidHead,
    RoIResponseHead,
    RPNResponseHead,
)
from mmdfkd.heads.alignment import fit_aligner, make_aligner
from mmdfkd.registry import MODELS

SIZES = ((8, 8), (4, 4), (2, 2))
CLASSES = 5
ANCHORS = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def detection(widths, counts=(3, 2), class_deltas=False, grad=False, batch=2):
    """An observation of a two-stage detector with random content."""
    n = sum(counts)
    feats = tuple(
        torch.randn(batch, w, *s, requires_grad=grad) for w, s in zip(widths, SIZES, strict=True)
    )
    response = Response(
        logits=torch.randn(n, CLASSES + 1, requires_grad=grad),
        deltas=torch.randn(n, 4 * CLASSES if class_deltas else 4, requires_grad=grad),
        dense_logits=tuple(torch.randn(batch, ANCHORS, *s, requires_grad=grad) for s in SIZES),
        dense_deltas=tuple(torch.randn(batch, 4 * ANCHORS, *s, requires_grad=grad) for s in SIZES),
    )
    probe = Probe([torch.zeros(c, 4) for c in counts], [torch.zeros(c) for c in counts])
    return Observation(Memory(feats, (32, 32)), probe, response)


def leaves(observation):
    r = observation.response
    return [*observation.memory.feats, r.logits, r.deltas, *r.dense_logits, *r.dense_deltas]


def classifier(feature, logits=None, taps=None, size=(32, 32)):
    response = None if logits is None else Response(logits=logits)
    return Observation(Memory((feature,), size, taps or {}), None, response)


def run(head, student, teacher, targets=None):
    return head(student, teacher, targets or Targets(), torch.zeros(2, 3, 32, 32))


# --- the base -------------------------------------------------------------------------------------


class ConstantHead(DistillHead):
    """Always one."""

    def losses(self, student, teacher, targets, images):
        return {'loss_one': torch.ones(())}


def test_schedule_is_a_linear_ramp_of_the_weight():
    head = ConstantHead(
        loss_weight=2.0, schedule={'begin': 10, 'end': 20, 'start': 0.5, 'stop': 1.0}
    )
    seen = []
    for iteration in (0, 10, 15, 20, 1000):
        head.set_iteration(iteration)
        seen.append(run(head, None, None)['loss_one'].item())
    assert seen == [1.0, 1.0, 1.5, 2.0, 2.0]
    head = ConstantHead(schedule={'begin': 0, 'end': 4})
    head.set_iteration(1)
    assert head.factor == 0.25
    assert ConstantHead(loss_weight=3.0).factor == 3.0


@pytest.mark.parametrize(
    ('schedule', 'message'),
    [
        ({'begin': 0}, 'end'),
        ({'begin': 0, 'stop': 1, 'ende': 4}, 'ende'),
        ({'begin': 4, 'end': 4}, 'not after'),
    ],
)
def test_schedule_errors(schedule, message):
    with pytest.raises(ValueError, match=message):
        ConstantHead(schedule=schedule)


def test_names_tell_heads_apart():
    assert list(run(ConstantHead(name='deep'), None, None)) == ['loss_deep_one']


@pytest.mark.parametrize(
    ('cfg', 'needs'),
    [
        ({'type': 'mmdfkd.LogitHead'}, Needs(response=True)),
        ({'type': 'mmdfkd.FeatureHead'}, Needs()),
        ({'type': 'mmdfkd.PyramidHead'}, Needs(teacher_response=True)),
        ({'type': 'mmdfkd.PyramidHead', 'floor': 1}, Needs()),
        ({'type': 'mmdfkd.PyramidHead', 'mode': 'pkd'}, Needs()),
        ({'type': 'mmdfkd.RPNResponseHead'}, Needs(response=True)),
        ({'type': 'mmdfkd.RoIResponseHead'}, Needs(response=True)),
    ],
)
def test_heads_are_registered_and_say_what_they_need(cfg, needs):
    head = MODELS.build(cfg)
    assert head.needs == needs


def test_needs_of_several_heads():
    """Each thing once, in order; who compares responses needs the teacher's too."""
    together = Needs.together(
        [Needs(False, ('a', 'b'), ('c',)), Needs(True, ('b', 'd')), Needs(teacher_response=True)]
    )
    assert together == Needs(True, ('a', 'b', 'd'), ('c',), True)
    assert Needs.together([]) == Needs()
    assert Needs.together([Needs(teacher_response=True)]) == Needs(teacher_response=True)


def test_a_head_is_active_while_it_has_a_say():
    head = ConstantHead(schedule={'begin': 10, 'end': 20, 'start': 1.0, 'stop': 0.0})
    seen = []
    for iteration in (0, 19, 20):
        head.set_iteration(iteration)
        seen.append(head.active)
    assert seen == [True, True, False]
    assert ConstantHead().active and not ConstantHead(loss_weight=0.0).active
    head.set_iteration(0)
    head.resting = True
    assert not head.active


def test_a_missing_response_is_an_error():
    with pytest.raises(ValueError, match="teacher's response"):
        run(LogitHead(), classifier(None, torch.zeros(2, 3)), classifier(None))


# --- aligners -------------------------------------------------------------------------------------


def test_aligner_keeps_the_scale_of_the_features():
    x = torch.randn(16, 8)
    assert isinstance(make_aligner(8, 8, conv=False), nn.Identity)
    assert torch.allclose(make_aligner(8, 8, conv=False, align='always')(x), x)
    assert torch.allclose(make_aligner(8, 12, conv=False)(x).norm(dim=1), x.norm(dim=1), rtol=1e-4)
    maps = torch.randn(2, 8, 3, 3)
    wide = make_aligner(8, 12, conv=True)(maps)
    assert torch.allclose(wide.norm(dim=1), maps.norm(dim=1), rtol=1e-4)
    with pytest.raises(ValueError, match='never'):
        make_aligner(8, 12, conv=True, align='never')
    with pytest.raises(ValueError, match='sometimes'):
        make_aligner(8, 12, conv=True, align='sometimes')


def mlp_by_hand(mlp, x):
    """Rows ``[N, D]``: linear layers, between them LayerNorm (its variance with 1 / D) and ReLU."""
    x = x.detach().double()
    parts = list(mlp)
    for linear, norm in zip(parts[::3], [*parts[1::3], None], strict=True):
        x = torch.einsum('ni,oi->no', x, linear.weight.double()) + linear.bias.double()
        if norm is not None:
            mean = x.sum(1, keepdim=True) / x.shape[1]
            variance = ((x - mean) ** 2).sum(1, keepdim=True) / x.shape[1]
            x = (x - mean) / (variance + 1e-5) ** 0.5 * norm.weight + norm.bias
            x = torch.where(x > 0, x, torch.zeros_like(x))
    return x


def random_mlp(aligner):
    """In float64, with norms that do something."""
    for p in aligner.double().parameters():
        nn.init.normal_(p)
    return aligner


@pytest.mark.parametrize(
    ('align', 'shapes'),
    [
        ('mlp', [(12, 6), (8, 12)]),
        (dict(type='mlp', layers=3, hidden=5), [(5, 6), (5, 5), (8, 5)]),
    ],
)
def test_an_mlp_aligns_place_by_place(align, shapes):
    aligner = make_aligner(6, 8, conv=False, align=align)
    assert [tuple(m.weight.shape) for m in aligner if isinstance(m, nn.Linear)] == shapes
    random_mlp(aligner)
    tokens = torch.randn(2, 9, 6, dtype=torch.float64)
    wanted = mlp_by_hand(aligner, tokens.flatten(0, 1)).view(2, 9, 8)
    torch.testing.assert_close(aligner(tokens), wanted, rtol=1e-10, atol=1e-10)
    conv = make_aligner(6, 8, conv=True, align=align).double()
    conv.load_state_dict(aligner.state_dict())
    maps = tokens.mT.unflatten(2, (3, 3))
    torch.testing.assert_close(conv(maps), wanted.mT.unflatten(2, (3, 3)), rtol=1e-10, atol=1e-10)
    # Also where the widths agree.
    assert len(make_aligner(6, 6, conv=False, align='mlp')) == 4


def test_an_mlp_is_not_fitted_by_least_squares():
    for conv in (False, True):
        aligner = make_aligner(6, 8, conv=conv, align='mlp')
        before = {name: value.clone() for name, value in aligner.state_dict().items()}
        fit_aligner(aligner, torch.randn(20, 6), torch.randn(20, 8))
        assert all(torch.equal(before[k], v) for k, v in aligner.state_dict().items())


@pytest.mark.parametrize(
    ('align', 'message'),
    [
        (dict(type='mlp', layers=1), "align='always'"),
        (dict(type='mlp', hidden=0), 'hidden of 1 or more'),
        (dict(type='mlp', width=4), r"\['layers', 'hidden'\], not \['width'\]"),
        (dict(type='auto', layers=2), r"align='auto' takes the options \[\]"),
        (dict(layers=2), 'not None'),
    ],
)
def test_options_of_an_aligner_are_checked(align, message):
    with pytest.raises(ValueError, match=message):
        make_aligner(8, 12, conv=False, align=align)


# --- classifiers ----------------------------------------------------------------------------------


def test_logit_head():
    s, t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    losses = run(LogitHead(temperature=2.0), classifier(None, s), classifier(None, t))
    p_t, p_s = (t / 2).softmax(-1), (s / 2).softmax(-1)
    expected = 4 * (p_t * (p_t.log() - p_s.log())).sum(-1).mean()
    assert list(losses) == ['loss_kl']
    assert torch.isclose(losses['loss_kl'], expected, rtol=1e-4)


def test_logit_head_with_hard_labels():
    s, t = torch.randn(4, 3), torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 0])

    def ce(targets, **kwargs):
        head = LogitHead(ce_weight=0.5, **kwargs)
        return run(head, classifier(None, s), classifier(None, t), targets)['loss_ce']

    log_p = s.log_softmax(-1)
    follow = -log_p[range(4), t.argmax(-1)].mean() / 2
    assert torch.isclose(ce(Targets()), follow)
    aimed = -log_p[range(4), labels].mean() / 2
    assert torch.isclose(ce(Targets(labels=labels), hard_labels='target'), aimed)
    with pytest.raises(ValueError, match='drawn for a class'):
        ce(Targets(), hard_labels='target')
    # The labels alone.
    head = LogitHead(loss='label', hard_labels='target')
    alone = run(head, classifier(None, s), classifier(None, t), Targets(labels=labels))
    assert list(alone) == ['loss_label'] and torch.isclose(alone['loss_label'], 2 * aimed)
    with pytest.raises(ValueError, match='hard_labels'):
        LogitHead(hard_labels='both')


def built(head, student, teacher):
    head.build_aligners(student, teacher)
    return head


def test_feature_head_on_vectors():
    s, t = torch.randn(4, 6, requires_grad=True), torch.randn(4, 8)
    head = built(FeatureHead(), {'neck': [6]}, {'neck': [8]})
    loss = run(head, classifier(s), classifier(t))['loss_feature']
    expected = (head.aligners[0](s) - t).square().sum() / t.square().sum()
    assert torch.isclose(loss, expected)
    loss.backward()
    assert s.grad.any()
    assert head.aligners[0].weight.grad.any()


def test_feature_head_cosine():
    s, t = torch.randn(4, 6), torch.randn(4, 6)
    head = built(FeatureHead(loss='cosine'), {'neck': [6]}, {'neck': [6]})
    loss = run(head, classifier(s), classifier(t))['loss_feature']
    expected = (1 - torch.cosine_similarity(s, t, dim=1)).mean()
    assert torch.isclose(loss, expected)


@pytest.mark.parametrize('loss', ['mse', 'cosine'])
def test_feature_head_with_an_mlp(loss):
    """Class token with class token, patches with patches, behind the MLP."""
    s = torch.randn(2, 17, 6, dtype=torch.float64, requires_grad=True)
    t = torch.randn(2, 17, 8, dtype=torch.float64)
    head = built(FeatureHead(loss=loss, align='mlp'), {'neck': [6]}, {'neck': [8]})
    random_mlp(head.aligners[0])
    before = head.aligners[0][0].weight.clone()
    head.fit_aligners(classifier(s), classifier(t))
    assert torch.equal(head.aligners[0][0].weight, before)
    found = run(head, classifier(s), classifier(t))['loss_feature']
    own = mlp_by_hand(head.aligners[0], s.flatten(0, 1))
    other = t.flatten(0, 1)
    if loss == 'mse':
        expected = ((own - other) ** 2).sum() / (other**2).sum()
    else:
        lengths = ((own**2).sum(1) * (other**2).sum(1)).sqrt()
        expected = (1 - (own * other).sum(1) / lengths).sum() / len(own)
    assert found.item() == pytest.approx(expected.item(), rel=1e-8)
    found.backward()
    assert s.grad.any() and all(p.grad.any() for p in head.parameters())


def test_pyramid_head_with_an_mlp():
    s, t = (
        torch.randn(2, 6, 3, 5, dtype=torch.float64),
        torch.randn(2, 8, 3, 5, dtype=torch.float64),
    )
    head = built(
        PyramidHead(floor=1, align=dict(type='mlp', hidden=7)), {'neck': [6]}, {'neck': [8]}
    )
    random_mlp(head.aligners[0])
    found = run(head, classifier(s), classifier(t))['loss_pyramid']
    own = mlp_by_hand(head.aligners[0], s.movedim(1, 3).flatten(0, 2))
    other = t.movedim(1, 3).flatten(0, 2)
    expected = ((own - other) ** 2).sum() / (other**2).sum()
    assert found.item() == pytest.approx(expected.item(), rel=1e-8)


def test_feature_head_slices_prefix_tokens():
    """A student with class token only, a teacher with class and distillation token: patches meet
    patches."""
    patches, cls = torch.randn(2, 16, 6), torch.randn(2, 1, 6)
    student = classifier(torch.cat([cls, patches], 1))
    teacher = classifier(torch.cat([cls, torch.randn(2, 1, 6), patches], 1))
    widths = {'neck': [6]}
    head = built(FeatureHead(prefix_tokens=(1, 2)), widths, widths)
    assert run(head, student, teacher)['loss_feature'] == 0
    bare = classifier(patches)
    head = built(FeatureHead(prefix_tokens=(0, 2)), widths, widths)
    assert run(head, bare, teacher)['loss_feature'] == 0
    # Nothing is sliced by guess: the class token that the student has not makes no grid.
    with pytest.raises(ValueError, match=r'teacher.*18 tokens.*prefix_tokens'):
        run(built(FeatureHead(), widths, widths), student, teacher)


def test_feature_head_compares_the_class_token_too():
    patches = torch.randn(2, 16, 6)
    t_cls, s_cls = torch.randn(2, 1, 6), torch.randn(2, 1, 6)
    t, s = torch.cat([t_cls, patches], 1), torch.cat([s_cls, patches], 1)
    head = built(FeatureHead(), {'neck': [6]}, {'neck': [6]})
    loss = run(head, classifier(s), classifier(t))['loss_feature']
    assert torch.isclose(loss, (s_cls - t_cls).square().sum() / t.square().sum())


def test_feature_head_resizes_unequal_grids():
    """A plane sampled at 8 x 8 and at 4 x 4 is the same inside; only the borders are
    extrapolated."""

    def plane(h, w):
        y, x = ((torch.arange(n) + 0.5) / n for n in (h, w))
        return (y[:, None] + 2 * x[None] + 1).reshape(1, h * w, 1).expand(2, -1, 5)

    student, teacher = classifier(plane(8, 8)), classifier(plane(4, 4))
    head = built(FeatureHead(prefix_tokens=0), {'neck': [5]}, {'neck': [5]})
    assert run(head, student, teacher)['loss_feature'] < 1e-12
    assert run(head, teacher, student)['loss_feature'] < 1e-2
    # Grids follow the image's proportions: 4 x 8 patches of a 16 x 32 px image.
    wide = classifier(plane(4, 8), size=(16, 32))
    assert run(head, wide, classifier(plane(2, 4), size=(16, 32)))['loss_feature'] < 1e-12
    with pytest.raises(ValueError, match='proportions'):
        run(head, classifier(plane(4, 8)), teacher)


def test_feature_head_taps_in_pairs():
    t0, t1 = torch.randn(2, 17, 8), torch.randn(2, 8, 4, 4)
    s0, s1 = torch.randn(2, 17, 6), torch.randn(2, 4, 4, 6)
    head = FeatureHead(taps_student=['a', 'b'], taps_teacher=['c', 'd'])
    assert head.needs == Needs(False, ('a', 'b'), ('c', 'd'))
    built(head, {'neck': [9], 'a': 6, 'b': 6}, {'neck': [9], 'c': 8, 'd': 8})
    student = classifier(None, taps={'a': s0, 'b': s1})
    teacher = classifier(None, taps={'c': t0, 'd': t1})
    loss = run(head, student, teacher)['loss_feature']
    first = (head.aligners[0](s0) - t0).square().sum() / t0.square().sum()
    second = (head.aligners[1](s1) - t1.permute(0, 2, 3, 1)).square().sum() / t1.square().sum()
    assert torch.isclose(loss, (first + second) / 2)


def test_feature_head_pools():
    """The mean of the teacher's patches against a vector, and against patches."""
    patches = torch.randn(2, 16, 6)
    teacher = classifier(torch.cat([torch.randn(2, 1, 6), patches], 1))
    head = built(FeatureHead(pool=True), {'neck': [6]}, {'neck': [6]})
    assert run(head, classifier(patches.mean(1)), teacher)['loss_feature'] < 1e-12
    shuffled = torch.cat([torch.randn(2, 1, 6), patches.flip(1)], 1)
    assert run(head, classifier(shuffled), teacher)['loss_feature'] < 1e-12
    unpooled = built(FeatureHead(), {'neck': [6]}, {'neck': [6]})
    with pytest.raises(ValueError, match='pool=True'):
        run(unpooled, classifier(patches.mean(1)), teacher)


def test_feature_head_of_a_distilled_deit():
    """Its output is the pair (class token, distillation token); a plain student meets the class
    token."""
    cls, dist = torch.randn(4, 6), torch.randn(4, 6)
    head = built(FeatureHead(), {'neck': [6]}, {'neck': [6]})
    assert run(head, classifier(cls), classifier((cls, dist)))['loss_feature'] == 0
    assert run(head, classifier((cls, dist)), classifier((cls, dist)))['loss_feature'] == 0


def test_feature_head_errors():
    with pytest.raises(ValueError, match="'l1'"):
        FeatureHead(loss='l1')
    with pytest.raises(ValueError, match='pairs 1 taps'):
        FeatureHead(taps_student=['a'], taps_teacher=['a', 'b'])
    with pytest.raises(RuntimeError, match='build_aligners'):
        run(FeatureHead(), classifier(torch.zeros(2, 4)), classifier(torch.zeros(2, 4)))
    with pytest.raises(KeyError, match="'missing'"):
        FeatureHead(taps_student=['missing']).build_aligners({'neck': [1]}, {'neck': [1]})
    head = built(FeatureHead(), {'neck': [4]}, {'neck': [4]})
    square = torch.randn(2, 4, 4, 4)
    with pytest.raises(ValueError, match='channels_last'):
        run(head, classifier(square), classifier(square))


# --- two-stage detectors
# ----------------------------------------------------------------------------------------


def test_pyramid_mimic_equation():
    student, teacher = detection((4, 4, 4)), detection((6, 6, 6))
    head = built(PyramidHead(floor=0.2), {'neck': [4] * 3}, {'neck': [6] * 3})
    loss = run(head, student, teacher)['loss_pyramid']
    expected = 0.0
    for level in range(3):
        s = head.aligners[level](student.memory.feats[level]).double()
        t = teacher.memory.feats[level].double()
        objectness = teacher.response.dense_logits[level].double()
        m = 0.2 + 0.8 * (1 / (1 + torch.exp(-objectness.max(1, keepdim=True).values)))
        expected += (m * (s - t) ** 2).sum() / (m * t**2).sum() / 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_pyramid_mimic_looks_where_the_teacher_sees_objects():
    teacher = detection((4, 4, 4))
    for logits in teacher.response.dense_logits:
        logits.fill_(-30)
    teacher.response.dense_logits[0][:, 1, 3, 3] = 30
    widths = {'neck': [4] * 3}

    def loss(where, floor):
        student = detection((4, 4, 4))
        student.memory.feats = tuple(f.clone() for f in teacher.memory.feats)
        student.memory.feats[0][:, :, where, where] += 1
        head = built(PyramidHead(floor=floor), widths, widths)
        return run(head, student, teacher)['loss_pyramid']

    assert loss(5, 0.0) < 1e-9
    assert loss(3, 0.0) > 0.1
    assert 0 < loss(5, 0.1) < loss(3, 0.1)
    assert torch.isclose(loss(5, 1.0), loss(3, 1.0))


def test_pyramid_without_a_mask_needs_no_response():
    student, teacher = detection((4, 4, 4)), detection((4, 4, 4))
    teacher.response = None
    widths = {'neck': [4] * 3}
    for head in (PyramidHead(floor=1), PyramidHead(mode='pkd')):
        assert not head.needs.response
        assert run(built(head, widths, widths), student, teacher)['loss_pyramid'] > 0.5
    with pytest.raises(ValueError, match='objectness'):
        run(built(PyramidHead(), widths, widths), student, teacher)


def test_pyramid_pkd_is_blind_to_scale_and_aligns_widths_and_sizes():
    teacher = detection((4, 4, 4))
    student = Observation(Memory(tuple(3 * f + 1 for f in teacher.memory.feats), (32, 32)))
    widths = {'neck': [4] * 3}
    head = built(PyramidHead(mode='pkd'), widths, widths)
    assert run(head, student, teacher)['loss_pyramid'] < 1e-5
    narrow = Observation(
        Memory(tuple(torch.randn(2, 3, 5, 7, requires_grad=True) for _ in range(3)), (32, 32))
    )
    head = built(PyramidHead(mode='pkd'), {'neck': [3] * 3}, widths)
    loss = run(head, narrow, teacher)['loss_pyramid']
    loss.backward()
    assert all(f.grad.any() for f in narrow.memory.feats)


def test_pyramid_levels():
    student, teacher = detection((4, 4, 4), grad=True), detection((4, 4, 4))
    widths = {'neck': [4] * 3}
    head = built(PyramidHead(levels=[0, -1]), widths, widths)
    run(head, student, teacher)['loss_pyramid'].backward()
    assert [f.grad is not None for f in student.memory.feats] == [True, False, True]
    with pytest.raises(ValueError, match='pyramid of 3'):
        built(PyramidHead(levels=[3]), widths, widths)
    with pytest.raises(ValueError, match='has 2 levels'):
        built(PyramidHead(), {'neck': [4] * 2}, widths)


def test_rpn_head_equation():
    student, teacher = detection((4, 4, 4)), detection((4, 4, 4))
    losses = run(RPNResponseHead(floor=0.25, beta=0.5, delta_weight=3.0), student, teacher)
    cls = cls_weight = box = box_weight = 0.0
    rows = zip(
        student.response.dense_logits,
        teacher.response.dense_logits,
        student.response.dense_deltas,
        teacher.response.dense_deltas,
        strict=True,
    )
    for ls, lt, ds, dt in rows:
        for b, a, y, x in torch.cartesian_prod(*(torch.arange(n) for n in ls.shape)).tolist():
            p = 1 / (1 + math.exp(-ls[b, a, y, x]))
            q = 1 / (1 + math.exp(-lt[b, a, y, x]))
            w = 0.25 + 0.75 * q
            cls += w * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
            cls_weight += w
            cost = 0.0
            for k in range(4):
                d = abs(ds[b, 4 * a + k, y, x] - dt[b, 4 * a + k, y, x]).item()
                cost += d * d if d < 0.5 else d - 0.25
            box += q * cost / 4
            box_weight += q
    assert losses['loss_rpn_cls'].item() == pytest.approx(cls / cls_weight, rel=1e-4)
    assert losses['loss_rpn_bbox'].item() == pytest.approx(3 * box / box_weight, rel=1e-4)


def test_rpn_head_errors():
    student, teacher = detection((4, 4, 4)), detection((4, 4, 4))
    student.response.dense_logits = tuple(x[:, :2] for x in student.response.dense_logits)
    student.response.dense_deltas = tuple(x[:, :8] for x in student.response.dense_deltas)
    with pytest.raises(ValueError, match='ratios'):
        run(RPNResponseHead(), student, teacher)
    student.response.dense_logits = teacher.response.dense_logits
    with pytest.raises(ValueError, match='sigmoid'):
        run(RPNResponseHead(), student, teacher)


@pytest.mark.parametrize('class_deltas', [False, True])
def test_roi_head_equation(class_deltas):
    student, teacher = (detection((4, 4, 4), class_deltas=class_deltas) for _ in range(2))
    head = RoIResponseHead(temperature=2.0, background_weight=0.5)
    losses = run(head, student, teacher)
    s, t = (o.response.logits.double() for o in (student, teacher))
    p = t.exp() / t.exp().sum(1, keepdim=True)
    w = 1 - 0.5 * p[:, -1]
    soft_t = (t / 2).exp() / (t / 2).exp().sum(1, keepdim=True)
    soft_s = (s / 2).exp() / (s / 2).exp().sum(1, keepdim=True)
    rows = 4 * (soft_t * (soft_t / soft_s).log()).sum(1)
    expected = (w * rows).sum() / w.sum()
    assert losses['loss_roi_cls'].item() == pytest.approx(expected.item(), rel=1e-5)
    d = (student.response.deltas - teacher.response.deltas).double().abs().view(5, -1, 4)
    cost = torch.where(d < 1, d**2 / 2, d - 0.5).mean(-1)
    evidence = p[:, :-1] if class_deltas else p[:, :-1].sum(1, keepdim=True)
    expected = (evidence * cost).sum() / evidence.sum()
    assert losses['loss_roi_bbox'].item() == pytest.approx(expected.item(), rel=1e-5)


def test_roi_head_of_pure_background_moves_no_box():
    student, teacher = detection((4, 4, 4), grad=True), detection((4, 4, 4))
    teacher.response.logits[:] = 0
    teacher.response.logits[:, -1] = 200  # exp underflows: foreground evidence is exactly zero
    losses = run(RoIResponseHead(background_weight=0.0), student, teacher)
    sum(losses.values()).backward()
    assert losses['loss_roi_bbox'] == 0
    assert student.response.deltas.grad is not None
    assert not student.response.deltas.grad.any()


HEADS = {
    'mimic': PyramidHead,
    'pkd': lambda: PyramidHead(mode='pkd'),
    'rpn': RPNResponseHead,
    'roi': RoIResponseHead,
}


@pytest.mark.parametrize('name', HEADS)
def test_every_head_is_zero_at_agreement_and_spares_the_teacher(name):
    teacher = detection((4, 4, 4), grad=True)
    student = detection((4, 4, 4), grad=True)
    widths = {'neck': [4] * 3}
    head = built(HEADS[name](), widths, widths)
    same = run(head, teacher, teacher)
    assert all(key.startswith('loss_') and abs(v) < 1e-6 for key, v in same.items())
    sum(run(head, student, teacher).values()).backward()
    assert all(leaf.grad is None for leaf in leaves(teacher))
    assert any(leaf.grad is not None and leaf.grad.any() for leaf in leaves(student))


@pytest.mark.parametrize('name', HEADS)
def test_no_head_scales_with_the_batch(name):
    student, teacher = detection((4, 4, 4)), detection((4, 4, 4))
    widths = {'neck': [4] * 3}
    head = built(HEADS[name](), widths, widths)
    once = run(head, student, teacher)

    def twice(o):
        r = o.response
        return Observation(
            Memory(tuple(f.repeat(2, 1, 1, 1) for f in o.memory.feats), o.memory.image_size),
            o.probe,
            Response(
                r.logits.repeat(2, 1),
                r.deltas.repeat(2, 1),
                tuple(x.repeat(2, 1, 1, 1) for x in r.dense_logits),
                tuple(x.repeat(2, 1, 1, 1) for x in r.dense_deltas),
            ),
        )

    again = run(head, twice(student), twice(teacher))
    for key, value in once.items():
        assert value > 0
        assert torch.isclose(again[key], value, rtol=1e-4)


@pytest.mark.parametrize('class_deltas', [False, True])
def test_no_proposals_at_all_keeps_the_graph(class_deltas):
    """Zero, with a gradient (of zero) for every parameter of the box head."""
    fc = nn.Linear(7, CLASSES + 1)
    reg = nn.Linear(7, 4 * CLASSES if class_deltas else 4)
    student, teacher = (detection((4, 4, 4), (0, 0), class_deltas) for _ in range(2))
    student.response.logits = fc(torch.zeros(0, 7))
    student.response.deltas = reg(torch.zeros(0, 7))
    losses = run(RoIResponseHead(), student, teacher)
    sum(losses.values()).backward()
    assert all(v == 0 for v in losses.values())
    for p in [*fc.parameters(), *reg.parameters()]:
        assert p.grad is not None
        assert not p.grad.any()


@pytest.mark.parametrize('name', HEADS)
def test_bfloat16_is_finite(name):
    def halved(o):
        r = o.response
        return Observation(
            Memory(tuple(f.bfloat16() for f in o.memory.feats), o.memory.image_size),
            o.probe,
            Response(
                50 * r.logits.bfloat16(),
                r.deltas.bfloat16(),
                tuple(50 * x.bfloat16() for x in r.dense_logits),
                tuple(x.bfloat16() for x in r.dense_deltas),
            ),
        )

    student, teacher = detection((3, 3, 3), grad=True), detection((4, 4, 4))
    head = built(HEADS[name](), {'neck': [3] * 3}, {'neck': [4] * 3})
    with torch.autocast('cpu', torch.bfloat16):
        losses = run(head, halved(student), halved(teacher))
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(leaf.grad is None or torch.isfinite(leaf.grad).all() for leaf in leaves(student))


def test_aligners_are_trained_and_nothing_else():
    widths = [{'neck': [3] * 3}, {'neck': [4] * 3}]
    head = built(PyramidHead(), *widths)
    student, teacher = detection((3, 3, 3)), detection((4, 4, 4))
    run(head, student, teacher)['loss_pyramid'].backward()
    assert len(list(head.parameters())) == 6
    assert all(p.grad.any() for p in head.parameters())
    assert not list(built(RPNResponseHead(), *widths).parameters())
