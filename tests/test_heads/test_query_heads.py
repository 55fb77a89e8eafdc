"""Heads of DETR-like networks, and pseudo labels, between tiny networks."""

import pytest
import torch
import toy
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

from mmdfkd.adapters import Normalizer, Observation, Targets, build_adapter
from mmdfkd.adapters.matching import assign_all
from mmdfkd.distillers.student import Student
from mmdfkd.heads import NoDetectionsError, object_watch
from mmdfkd.registry import MODELS

PIXELS = toy.images(2)
HEADS = dict(
    aligned=dict(type='mmdfkd.QueryAlignedHead'),
    asking=dict(type='mmdfkd.StudentQueryHead'),
    hungarian=dict(type='mmdfkd.HungarianQueryHead'),
    prior=dict(type='mmdfkd.QueryPriorHead', threshold=0.3),
    pseudo=dict(type='mmdfkd.PseudoLabelHead', threshold=0.3),
    memory=dict(type='mmdfkd.EncoderMemoryHead'),
)


def adapter_of(seed=0, model=None, **changes):
    model = toy.detr_model(**changes) if model is None else model
    normalizer = Normalizer.from_config(toy.whole(model))
    return build_adapter(toy.build(model, seed), normalizer)


def student_of(teacher, heads, seed=1, model=None, **changes):
    adapter = adapter_of(seed, model, **changes)
    heads = [MODELS.build(dict(head)) for head in heads]
    student = Student(adapter.net, adapter.normalizer, heads)
    student.build_aligners(teacher, (toy.SIZE, toy.SIZE))
    return student


def observed(teacher, student):
    needs = student.needs
    return teacher.observe(
        PIXELS, needs.taps_teacher, needs.teacher_response, fresh=needs.fresh, serials=[3, 4]
    )


def silent(adapter):
    """It sees no object anywhere."""
    head = adapter.net.bbox_head
    for layer in [head.fc_cls] if hasattr(head, 'fc_cls') else head.cls_branches:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, -30.0)
        if not head.loss_cls.use_sigmoid:
            torch.nn.init.constant_(layer.bias[-1:], 30.0)
    return adapter


def mine(student, theirs, **settings):
    memory = student.adapter.encode(PIXELS)
    return Observation(memory, theirs.probe, student.adapter.answer(memory, theirs.probe))


# Equations, in float64; logits of a softmax have the background last ------------------------------


def chances(logits, sigmoid):
    logits = logits.double()
    if sigmoid:
        return 1 / (1 + (-logits).exp())
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


def surest_class(logits, sigmoid):
    p = chances(logits, sigmoid)
    return (p if sigmoid else p[..., :-1]).amax(-1)


def divergence(z_s, z_t, sigmoid):
    """KL of each query: of a Bernoulli distribution for each class, or of one distribution."""
    p, q = chances(z_s, sigmoid), chances(z_t, sigmoid)
    rows = q * (q / p).log()
    if sigmoid:
        rows = rows + (1 - q) * ((1 - q) / (1 - p)).log()
    return rows.sum(-1)


def overlap(a, b):
    """GIoU of boxes ``(cx, cy, w, h)``."""
    a, b = a.double(), b.double()
    low, high = ([x[..., :2] + sign * x[..., 2:] / 2 for x in (a, b)] for sign in (-1, 1))
    both = (torch.minimum(*high) - torch.maximum(*low)).clamp_min(0).prod(-1)
    hull = (torch.maximum(*high) - torch.minimum(*low)).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both
    return both / union - (hull - union) / hull


def apart(a, b):
    return (a.double() - b.double()).abs()


def weighted(values, weight):
    weight = weight.expand_as(values)
    return float((values * weight).sum() / weight.sum())


@torch.no_grad()
@pytest.mark.parametrize('kind', ['deformable', 'detr'])
def test_aligned_follows_the_last_layer_in_every_layer(kind):
    """Sigmoids, and a softmax with background."""
    sigmoid = kind != 'detr'
    teacher = adapter_of(kind=kind, decoder_layers=2)
    student = student_of(teacher, [dict(HEADS['aligned'], floor=0.2)], kind=kind, decoder_layers=2)
    theirs = observed(teacher, student)
    found = student(PIXELS, theirs, Targets())
    own = mine(student, theirs)
    for name, answers in (('query', 'asked'), ('fresh', 'fresh')):
        ours, wanted = getattr(own.response, answers), getattr(theirs.response, answers)
        logits, boxes = wanted.logits[-1], wanted.boxes[-1]
        assert ours.sigmoid == sigmoid and len(ours.logits) == 2
        weight = surest_class(logits, sigmoid)
        expected = dict(
            cls=weighted(divergence(ours.logits, logits, sigmoid), 0.2 + 0.8 * weight),
            l1=5 * weighted(apart(ours.boxes, boxes).mean(-1), weight),
            giou=2 * weighted(1 - overlap(ours.boxes, boxes), weight),
        )
        for term, value in expected.items():
            assert float(found[f'loss_{name}_{term}']) == pytest.approx(value, rel=1e-4)
    assert not torch.allclose(own.response.asked.boxes, own.response.fresh.boxes)


@torch.no_grad()
@pytest.mark.parametrize('queries', [9, 12, 14])
@pytest.mark.parametrize('matching', ['last', 'each'])
@pytest.mark.parametrize('kind', ['deformable', 'detr'])
def test_hungarian_pairs_are_the_best(kind, matching, queries):
    """Of another width. Fewer queries follow the teacher's surest; of more, the rest is silent."""
    sigmoid = kind != 'detr'
    teacher = adapter_of(kind=kind, queries=12)
    head = dict(HEADS['hungarian'], matching=matching)
    student = student_of(teacher, [head], kind=kind, width=16, queries=queries)
    theirs = observed(teacher, student)
    found = student(PIXELS, theirs, Targets())
    own, other = mine(student, theirs).response.own, theirs.response.own
    rows, silence = [], []
    for layer in range(2):
        for b in range(2):
            sure = surest_class(other.logits[-1, b], sigmoid)
            best = sorted(range(12), key=lambda q: -float(sure[q]))[:queries]
            z_t, b_t = other.logits[-1, b, best], other.boxes[-1, b, best]
            at = -1 if matching == 'last' else layer
            p, q = chances(own.logits[at, b], sigmoid), chances(z_t, sigmoid)
            # DETRDistill's cost: cross-entropy, 5 L1 as a sum, -2 GIoU.
            cls = -p.log() @ q.mT
            if sigmoid:
                cls = cls - (1 - p).log() @ (1 - q).mT
            pair = own.boxes[at, b, :, None], b_t[None]
            cost = cls + 5 * apart(*pair).sum(-1) - 2 * overlap(*pair)
            ours, column = linear_sum_assignment(cost.numpy())
            z_s, b_s = own.logits[layer, b, ours], own.boxes[layer, b, ours]
            z_t, b_t = z_t[column], b_t[column]
            rows.append(
                [
                    sure[best][column],
                    divergence(z_s, z_t, sigmoid),
                    apart(b_s, b_t).mean(-1),
                    1 - overlap(b_s, b_t),
                ]
            )
            # A silent one is background for sure, and weighs as one without any foreground.
            for left in set(range(queries)) - set(ours.tolist()):
                p = chances(own.logits[layer, b, left], sigmoid)
                silence.append(float(-(1 - p).log().sum() if sigmoid else -p[-1].log()))
    assert len(silence) == 4 * max(queries - 12, 0)
    weight, cls, l1, giou = (torch.cat(x) for x in zip(*rows, strict=True))
    floored = 0.1 + 0.9 * weight
    total = float((floored * cls).sum()) + 0.1 * sum(silence)
    expected = dict(
        cls=total / (float(floored.sum()) + 0.1 * len(silence)),
        l1=5 * weighted(l1, weight),
        giou=2 * weighted(giou, weight),
    )
    for name, value in expected.items():
        assert float(found[f'loss_hungarian_{name}']) == pytest.approx(value, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('queries', [9, 14])
@pytest.mark.parametrize('matching', ['last', 'each'])
@pytest.mark.parametrize('kind', ['deformable', 'detr'])
def test_the_surest_are_matched_and_the_others_follow_in_order(kind, matching, queries):
    sigmoid = kind != 'detr'
    teacher = adapter_of(kind=kind, queries=12)
    heads = [dict(HEADS['hungarian'], matching=matching, most=most) for most in (4, 40, None)]
    student = student_of(teacher, heads, kind=kind, queries=queries)
    theirs = observed(teacher, student)
    own, other = mine(student, theirs).response.own, theirs.response.own
    rows, columns = student.heads[0].pairs(own, other)
    for layer in range(len(rows)):
        at = layer if matching == 'each' else -1
        for b in range(2):
            sure = surest_class(other.logits[-1, b], sigmoid)
            ranked = sorted(range(12), key=lambda q: -float(sure[q]))[:queries]
            p, q = chances(own.logits[at, b], sigmoid), chances(other.logits[-1, b], sigmoid)
            cls = -p.log() @ q[ranked[:4]].mT
            if sigmoid:
                cls = cls - (1 - p).log() @ (1 - q[ranked[:4]]).mT
            pair = own.boxes[at, b, :, None], other.boxes[-1, b, ranked[:4]][None]
            cost = cls + 5 * apart(*pair).sum(-1) - 2 * overlap(*pair)
            ours, column = linear_sum_assignment(cost.numpy())
            wanted = {(int(i), ranked[j]) for i, j in zip(ours, column, strict=True)}
            mood = surest_class(own.logits[at, b], sigmoid)
            left = sorted(set(range(queries)) - set(ours.tolist()), key=lambda i: -float(mood[i]))
            wanted |= set(zip(left, ranked[4:], strict=False))
            found = zip(rows[layer, b].tolist(), columns[layer, b].tolist(), strict=True)
            # With fewer queries columns count among the surest so many, in no order.
            if queries >= 12:
                assert set(found) == wanted
            else:
                assert {i for i, _ in found} == {i for i, _ in wanted}
    losses = [
        [float(v) for v in head.losses(mine(student, theirs), theirs, Targets(), PIXELS).values()]
        for head in student.heads
    ]
    assert losses[1] == losses[2] != losses[0]


# The larger ones are solved on several threads.
@pytest.mark.parametrize(('queries', 'wanted'), [(5, 4), (120, 110)])
def test_assignments_of_a_batch_are_those_of_each(queries, wanted):
    cost = torch.rand(3, queries, wanted, generator=torch.Generator().manual_seed(0))
    rows, columns = assign_all(cost)
    assert columns.tolist() == [list(range(wanted))] * 3
    for one, row in zip(cost, rows, strict=True):
        best = linear_sum_assignment(one.numpy())
        found = one[row, range(wanted)].sum()
        assert float(found) == pytest.approx(float(one.numpy()[best].sum()))
    with pytest.raises(FloatingPointError, match='not finite'):
        assign_all(cost * float('nan'))


# With the last threshold the second image is without an object.
PRIORS = [('deformable', 0.7), ('deformable', (0.8, 0.55, 0.6))]
PRIORS += [('detr', 0.13), ('detr', (0.1, 0.5, 0.14)), ('detr', 0.45)]


@torch.no_grad()
@pytest.mark.parametrize(('kind', 'threshold'), PRIORS)
def test_prior_takes_the_teachers_assignment(kind, threshold):
    """5 L1 as a sum, 2 GIoU, of each layer and image.

    Classes: focal loss by the number of objects, or cross-entropy with a tenth of the background.
    """
    sigmoid = kind != 'detr'
    teacher = adapter_of(kind=kind)
    student = student_of(teacher, [dict(HEADS['prior'], threshold=threshold)], kind=kind)
    teacher.net.double(), student.double()
    pixels = PIXELS.double()
    if not sigmoid:
        # So that it sees more than one class.
        layer, said = teacher.net.bbox_head.fc_cls, teacher.observe(pixels).response.asked.logits
        layer.weight.mul_(4)
        layer.bias.sub_(said[-1].mean((0, 1))).mul_(4)
    theirs = teacher.observe(pixels)
    (found,) = student(pixels, theirs, Targets()).values()
    memory = student.adapter.encode(pixels)
    own, other = student.adapter.answer(memory, theirs.probe).asked, theirs.response.asked
    scores, classes = chances(other.logits[-1], sigmoid)[..., :3].max(-1)
    least = torch.tensor(threshold).expand(3)
    terms, objects = [], []
    for b in range(2):
        queries = [q for q in range(12) if scores[b, q] >= least[classes[b, q]]]
        objects += classes[b, queries].tolist()
        share = max(len(queries), 1)
        for layer in range(2):
            p = chances(own.logits[layer, b], sigmoid)
            if sigmoid:
                goal = torch.zeros(12, 3, dtype=torch.float64)
                goal[queries, classes[b, queries]] = 1
                said = goal * p + (1 - goal) * (1 - p)
                cls = (-(0.75 - 0.5 * goal) * (1 - said) ** 2 * said.log()).sum() / share
            else:
                goal = [int(classes[b, q]) if q in queries else 3 for q in range(12)]
                weight = [0.1 if label == 3 else 1.0 for label in goal]
                rows = [-float(p[q, goal[q]].log()) * weight[q] for q in range(12)]
                cls = sum(rows) / sum(weight)
            pair = own.boxes[layer, b, queries], other.boxes[-1, b, queries]
            away = 5 * apart(*pair).sum() + 2 * (1 - overlap(*pair)).sum()
            terms.append(float(cls + away / share))
    assert 0 < len(objects) < 24 and (len(set(objects)) == 1) == (threshold == 0.45)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-6)


# Of 48 px nothing is padded; 40 x 56 px become 48 x 64.
@pytest.mark.parametrize('floor', [0.1, 1.0])
@pytest.mark.parametrize('size', [(48, 48), (40, 56)])
@pytest.mark.parametrize('kind', ['deformable', 'detr'])
def test_memory_is_weighted_by_the_teachers_boxes(kind, size, floor):
    """Tokens of 8 px; what lies on padding has no weight."""
    pixels = toy.images(2, 56)[..., : size[0], : size[1]].double()
    teacher = adapter_of(kind=kind, width=32)
    student = student_of(teacher, [dict(HEADS['memory'], floor=floor)], kind=kind, width=16)
    teacher.net.double(), student.double()
    theirs = teacher.observe(pixels)
    (head,) = student.heads
    (found,) = student(pixels, theirs, Targets()).values()
    tokens = student.adapter.encode(pixels).encoder.tokens
    (shape,) = theirs.memory.encoder.shapes
    assert shape == tuple(-(-side // 16) * 2 for side in size)
    weight = torch.full((2, shape[0] * shape[1]), floor, dtype=torch.float64)
    for b in range(2):
        for place in range(weight.shape[1]):
            row, column = divmod(place, shape[1])
            y, x = (row + 0.5) * 8, (column + 0.5) * 8
            for (x0, y0, x1, y1), score in zip(
                theirs.probe.boxes[b].tolist(), theirs.probe.scores[b].tolist(), strict=True
            ):
                if x0 <= x <= x1 and y0 <= y <= y1:
                    sure = floor + (1 - floor) * score
                    weight[b, place] = max(float(weight[b, place]), sure)
            if 8 * row >= size[0] or 8 * column >= size[1]:
                weight[b, place] = 0
    assert bool((weight == 0).any()) == (size != (48, 48))
    own = tokens @ head.aligner.weight.mT + head.aligner.bias
    goal = theirs.memory.encoder.tokens
    error, energy = (float((weight * (x**2).sum(-1)).sum()) for x in (own - goal, goal))
    assert (weight > floor).any() == (floor < 1)
    assert float(found) == pytest.approx(error / energy, rel=1e-6)
    with torch.no_grad():
        blind = Observation(student.adapter.encode(pixels))
        head.fit_aligners(blind, theirs)
        (fitted,) = student(pixels, theirs, Targets()).values()
    assert fitted < found


def test_pseudo_labels_are_the_networks_own_loss():
    """What mmdet's loss gives for the same labels, also across families."""
    teacher = adapter_of()
    student = student_of(teacher, [HEADS['pseudo']], kind='two-stage', queries=8)
    theirs = observed(teacher, student)
    (found,) = student(PIXELS, theirs, Targets()).values()
    objects = [one[one.scores >= 0.3] for one in teacher.detect(theirs.memory)]
    assert sum(map(len, objects))
    net, samples = student.net, student.adapter._samples(theirs.memory)
    for sample, one in zip(samples, objects, strict=True):
        sample.gt_instances = InstanceData(bboxes=one.bboxes, labels=one.labels)
    net.train()
    losses = net.loss(student.adapter.normalizer(PIXELS), samples)
    total = sum(float(v) for k, v in losses.items() if 'loss' in k)
    assert 'enc_loss_cls' in losses and float(found) == pytest.approx(total, rel=1e-4)
    assert 'extract_feat' not in vars(net)


ASSIGN = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5)
RCNN = dict(
    assigner=ASSIGN,
    sampler=dict(type='RandomSampler', num=16, pos_fraction=0.5, add_gt_as_proposals=True),
    pos_weight=-1,
    mask_size=6,
)
TRAIN = dict(
    rpn=dict(
        assigner=dict(ASSIGN, pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
        sampler=dict(type='RandomSampler', num=32, pos_fraction=0.5, add_gt_as_proposals=False),
        allowed_border=-1,
        pos_weight=-1,
    ),
    rpn_proposal=dict(nms_pre=60, max_per_img=12, nms=dict(type='nms', iou_threshold=0.7)),
    rcnn=RCNN,
)


def test_pseudo_labels_of_another_family():
    teacher = adapter_of()
    for head in ('pseudo', 'quiet'):
        threshold = dict(pseudo=0.3, quiet=0.999)[head]
        student = student_of(
            teacher,
            [dict(HEADS['pseudo'], threshold=threshold)],
            model=dict(toy.detector_model(), train_cfg=TRAIN),
        )
        assert student.freeze_unused(teacher, (toy.SIZE, toy.SIZE)) == []
        (loss,) = student(PIXELS, observed(teacher, student), Targets()).values()
        assert torch.isfinite(loss) and loss > 0
        loss.backward()
        assert all(p.grad is not None for p in student.parameters())
    bare = student_of(teacher, [HEADS['pseudo']], model=toy.detector_model())
    with pytest.raises(ValueError, match='no train_cfg'):
        bare(PIXELS, observed(teacher, bare), Targets())


@pytest.mark.parametrize('kind', ['two-stage', 'retina'])
def test_boxes_without_area_are_no_labels(kind):
    """mmdet's own losses of them are NaN in the one, infinite in the other."""
    if kind == 'retina':
        model = toy.one_stage_model(kind)
    else:
        model = dict(toy.detector_model(), train_cfg=TRAIN)
    student = student_of(adapter_of(), [HEADS['pseudo']], model=model)
    memory = student.adapter.encode(PIXELS)

    def found_of(*boxes):
        labels = torch.ones(len(boxes), dtype=torch.long)
        found = InstanceData(
            bboxes=torch.tensor(boxes), labels=labels, scores=torch.ones(len(boxes))
        )
        return [found, found]

    def loss_of(*boxes):
        torch.manual_seed(0)
        theirs = Observation(memory, find_detections=lambda: found_of(*boxes))
        return float(student(PIXELS, theirs, Targets())['loss_pseudo'])

    whole, line, thin = [4.0, 5.0, 24.0, 30.0], [40.0, 5.0, 40.0, 30.0], [9.0, 9.0, 9.5, 20.0]
    raw = student.adapter.own_loss(memory, found_of(line))
    assert not all(torch.isfinite(v) for v in raw.values())
    assert loss_of(whole, line, thin) == loss_of(whole)
    assert 0 < loss_of(line) < float('inf')


@pytest.mark.parametrize('kind', ['detr', 'conditional', 'dab', 'deformable', 'two-stage', 'dino'])
def test_without_any_object_every_parameter_keeps_its_gradient(kind):
    """DINO's denoising queries, of which there are none without an object, included."""
    published = kind in ('conditional', 'dab', 'dino')
    if published:
        changed = dict(model=toy.small_detr(kind))
        seeing = adapter_of(**changed)
    else:
        seeing = adapter_of(kind=kind)
        changed = dict(kind=kind, decoder_layers=1, dims=16)
    student = student_of(seeing, HEADS.values(), **changed)
    # The published backbone's own first stages and norms.
    fixed = [n for n, p in student.named_parameters() if not p.requires_grad]
    assert bool(fixed) == published and all(n.startswith('net.backbone.') for n in fixed)
    size = toy.SIZE, toy.SIZE
    frozen = student.freeze_unused(seeing, size)
    assert frozen == []
    missed = [set(student.unreached(seeing, size, [head])) for head in student.heads]
    teacher = silent(seeing)
    # Each head by itself, too, reaches what it reaches otherwise.
    assert [set(student.unreached(teacher, size, [head])) for head in student.heads] == missed
    theirs = observed(teacher, student)
    losses = student(PIXELS, theirs, Targets())
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(float(v) < 1e-3 for k, v in losses.items() if k.endswith(('l1', 'giou')))
    sum(losses.values()).backward()
    assert [n for n, p in student.named_parameters() if p.grad is None] == fixed
    assert all(p.grad is None for p in teacher.net.parameters())


def test_what_no_head_reads_is_frozen():
    """A random student taught by its own queries; aligned alone, these stay as they are."""
    teacher = adapter_of(kind='two-stage')
    own = student_of(teacher, [HEADS['hungarian']], kind='two-stage')
    frozen = own.freeze_unused(teacher, (toy.SIZE, toy.SIZE))
    # What chooses the queries is reached by no answer at them.
    assert frozen and all('_branches' in n or 'memory_trans' in n for n in frozen)
    dense = student_of(
        teacher,
        [HEADS['hungarian'], dict(type='mmdfkd.RPNResponseHead')],
        kind='two-stage',
    )
    assert dense.freeze_unused(teacher, (toy.SIZE, toy.SIZE)) == []
    teacher = adapter_of()
    aligned = student_of(teacher, [HEADS['aligned']])
    assert 'query_embedding' in aligned.freeze_unused(teacher, (toy.SIZE, toy.SIZE))
    assert not aligned.net.query_embedding.weight.requires_grad
    hungarian = student_of(teacher, [HEADS['hungarian']])
    assert hungarian.freeze_unused(teacher, (toy.SIZE, toy.SIZE)) == []


@pytest.mark.parametrize('kind', ['mask', 'cascade'])
def test_pseudo_labels_without_any_object_of_masks_and_stages(kind):
    if kind == 'mask':
        model = dict(toy.detector_model(mask=True), train_cfg=TRAIN)
    else:
        model = dict(toy.cascade_model(), train_cfg=dict(TRAIN, rcnn=[RCNN, RCNN]))
        model['train_cfg']['rpn_proposal'] = dict(TRAIN['rpn_proposal'], min_bbox_size=0)
    teacher = adapter_of(model=model)
    student = student_of(teacher, [HEADS['pseudo']], model=model).train()
    assert student.freeze_unused(teacher, (toy.SIZE, toy.SIZE)) == []
    # No box is as large: nothing is proposed, and nothing detected.
    teacher.net.rpn_head.test_cfg.min_bbox_size = 1000
    theirs = observed(teacher, student)
    assert [len(found) for found in theirs.detections] == [0, 0]
    assert all('masks' in found for found in theirs.detections)
    (loss,) = student(PIXELS, theirs, Targets()).values()
    assert torch.isfinite(loss) and loss > 0, 'what is proposed is background'
    loss.backward()
    assert [n for n, p in student.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in student.parameters())


@pytest.fixture
def said(monkeypatch):
    """What the watch says, sentence by sentence."""
    found = []
    monkeypatch.setattr(object_watch, 'print_log', lambda text, *_: found.append(text))
    return found


WATCHING = ('PseudoLabelHead', 'QueryPriorHead', 'FGDHead')


@pytest.mark.parametrize('on_empty', ['warn', 'lower', 'stop'])
@pytest.mark.parametrize('kind', WATCHING)
def test_an_epoch_without_detections_is_said(kind, on_empty, said):
    teacher = silent(adapter_of())
    head = dict(type=f'mmdfkd.{kind}', threshold=0.4, on_empty=on_empty, patience=2)
    student = student_of(teacher, [head]).train()
    theirs = observed(teacher, student)
    student(PIXELS, theirs, Targets())
    assert said == []
    # A resumed run counts on.
    again = student_of(teacher, [head]).train()
    again.heads.load_state_dict(student.heads.state_dict())
    if on_empty == 'stop':
        with pytest.raises(NoDetectionsError, match=f'{kind}.*above 0.400 in 2 steps.*Lower'):
            again(PIXELS, theirs, Targets())
        return
    again(PIXELS, theirs, Targets())
    follows = dict(
        warn='The student learns nothing but background from it.',
        lower='The threshold is now 0.200.',
    )[on_empty]
    assert said == [f'{kind}: no detection of the teacher above 0.400 in 2 steps on end. {follows}']
    (one,) = again.heads
    assert float(one.threshold) == pytest.approx(0.2 if on_empty == 'lower' else 0.4)
    assert int(one.empty_steps) == 0


def test_a_threshold_is_not_lowered_to_nothing(said):
    for threshold, least in ((0.4, [0.05]), (0.03, [0.03]), ([0.4, 0.03], [0.05, 0.03])):
        head = MODELS.build(
            dict(type='mmdfkd.PseudoLabelHead', threshold=threshold, on_empty='lower')
        )
        for _ in range(8):
            head.nothing_seen('Nothing. ')
        assert head.threshold.flatten().tolist() == pytest.approx(least)
    assert said[-1] == 'Nothing. The threshold is now 0.030 to 0.050.'


def test_each_class_may_have_a_threshold_of_its_own():
    teacher = adapter_of()
    every = [0.6, 0.3, 0.99]
    student = student_of(teacher, [dict(HEADS['pseudo'], threshold=every)])
    theirs = observed(teacher, student)
    labels = []
    student.adapter.own_loss = lambda memory, objects: (
        labels.append(objects) or dict(loss=memory.feats[0].sum())
    )
    student(PIXELS, theirs, Targets())
    for one, found in zip(labels[0], theirs.detections, strict=True):
        kept = [
            (score, label)
            for score, label in zip(found.scores.tolist(), found.labels.tolist(), strict=True)
            if score >= every[label]
        ]
        assert list(zip(one.scores.tolist(), one.labels.tolist(), strict=True)) == kept
    assert {len(x) for x in theirs.detections} == {10} and sum(map(len, labels[0])) not in (0, 20)
    with pytest.raises(ValueError, match='2 thresholds for 3 classes'):
        student_of(teacher, [dict(HEADS['prior'], threshold=[0.3, 0.4])])


@pytest.mark.parametrize('kind', WATCHING)
def test_heads_without_an_object_say_so(kind, said, monkeypatch):
    """A warning after as many training steps on end, in any process; and then from the start."""
    head = dict(type=f'mmdfkd.{kind}', threshold=0.4, patience=3)
    seeing, silenced = adapter_of(), silent(adapter_of())
    student = student_of(seeing, [head]).train()
    (one,) = student.heads
    for teacher, count in ((silenced, 1), (silenced, 2), (seeing, 0), (silenced, 1), (silenced, 2)):
        student(PIXELS, observed(teacher, student), Targets())
        assert int(one.empty_steps) == count and not said
    with torch.no_grad():
        student(PIXELS, observed(silenced, student), Targets())
    student.eval()(PIXELS, observed(silenced, student), Targets())
    assert int(one.empty_steps) == 2 and not said
    # Another process still sees something.
    with monkeypatch.context() as patch:
        patch.setattr(object_watch, 'all_reduce', lambda total: total.add_(1))
        student.train()(PIXELS, observed(silenced, student), Targets())
    assert int(one.empty_steps) == 0
    one.empty_steps.fill_(2)
    # A resumed run counts on; an older checkpoint begins.
    again = student_of(seeing, [head]).train()
    again.heads.load_state_dict(student.heads.state_dict())
    assert int(again.heads[0].empty_steps) == 2
    older = {
        k: v
        for k, v in student.heads.state_dict().items()
        if not k.endswith(('steps', 'threshold'))
    }
    again = student_of(seeing, [head]).train()
    again.heads.load_state_dict(older)
    assert int(again.heads[0].empty_steps) == 0 and float(again.heads[0].threshold) > 0.39
    student(PIXELS, observed(silenced, student), Targets())
    assert int(one.empty_steps) == 0 and len(said) == 1
    assert f'{kind}: no detection of the teacher above 0.400 in 3 steps on end' in said[0]


def test_networks_that_do_not_pair_are_refused():
    teacher = adapter_of()
    with pytest.raises(ValueError, match='a softmax'):
        student_of(teacher, [HEADS['aligned']], kind='detr')
    with pytest.raises(ValueError, match='not of a FasterRCNN'):
        student_of(teacher, [HEADS['hungarian']], model=toy.detector_model())
    narrow = student_of(teacher, [HEADS['aligned']], width=16)
    with pytest.raises(ValueError, match='HungarianQueryHead'):
        narrow(PIXELS, observed(teacher, narrow), Targets())
    for head, wrong in (
        ('aligned', dict(floor=2)),
        ('hungarian', dict(matching='all')),
        ('hungarian', dict(most=0)),
        ('prior', dict(threshold=0)),
        ('prior', dict(on_empty='hide')),
        ('pseudo', dict(threshold=[0.3, 1.0])),
        ('pseudo', dict(on_empty='hide')),
        ('pseudo', dict(patience=0)),
        ('memory', dict(align='maybe')),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MODELS.build(dict(HEADS[head], **wrong))
