"""Heads of DETR-like networks, and pseudo labels, between tiny networks."""

import pytest
import torch
import toy
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

from mmdfkd.adapters import Normalizer, Observation, Targets, build_adapter
from mmdfkd.adapters.matching import SetCriterion, assign_all
from mmdfkd.distillers.student import Student
from mmdfkd.heads import NoDetectionsError, object_watch
from mmdfkd.losses import masked_mimic, query_box_loss, query_class_loss, query_cost
from mmdfkd.registry import MODELS

PIXELS = toy.images(2)
HEADS = dict(
    aligned=dict(type='mmdfkd.QueryAlignedHead'),
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
    for branch in adapter.net.bbox_head.cls_branches:
        torch.nn.init.zeros_(branch.weight)
        torch.nn.init.constant_(branch.bias, -30.0)
    return adapter


def mine(student, theirs, **settings):
    memory = student.adapter.encode(PIXELS)
    return Observation(memory, theirs.probe, student.adapter.answer(memory, theirs.probe))


def test_aligned_follows_the_last_layer_in_every_layer():
    teacher = adapter_of(decoder_layers=2)
    student = student_of(teacher, [HEADS['aligned']], decoder_layers=1)
    theirs = observed(teacher, student)
    found = student(PIXELS, theirs, Targets())
    own = mine(student, theirs)
    for kind, answers in (('query', 'asked'), ('fresh', 'fresh')):
        ours, wanted = getattr(own.response, answers), getattr(theirs.response, answers)
        logits, boxes = wanted.logits[-1].double(), wanted.boxes[-1].double()
        weight = logits.sigmoid().amax(-1)
        cls = [query_class_loss(z.double(), logits, 0.1 + 0.9 * weight, True) for z in ours.logits]
        place = [query_box_loss(b.double(), boxes, weight) for b in ours.boxes]
        expected = [
            torch.stack(cls).mean(),
            5 * torch.stack([p[0] for p in place]).mean(),
            2 * torch.stack([p[1] for p in place]).mean(),
        ]
        for name, value in zip(('cls', 'l1', 'giou'), expected, strict=True):
            assert float(found[f'loss_{kind}_{name}']) == pytest.approx(float(value), rel=1e-4)
    assert not torch.allclose(own.response.asked.boxes, own.response.fresh.boxes)


@pytest.mark.parametrize('queries', [9, 12, 14])
@pytest.mark.parametrize('matching', ['last', 'each'])
def test_hungarian_pairs_are_the_best(matching, queries):
    """Of another width. Fewer queries follow the teacher's surest; of more, the rest is silent."""
    teacher = adapter_of(queries=12)
    head = dict(HEADS['hungarian'], matching=matching)
    student = student_of(teacher, [head], width=16, queries=queries)
    theirs = observed(teacher, student)
    found = student(PIXELS, theirs, Targets())
    own, other = mine(student, theirs).response.own, theirs.response.own
    totals, silence = [], []
    for layer in range(2):
        parts = []
        for b in range(2):
            goal = [x[-1, b].double() for x in (other.logits, other.boxes)]
            surest = sorted(range(12), key=lambda q: -float(goal[0][q].sigmoid().max()))[:queries]
            goal = [x[surest] for x in goal]
            at = -1 if matching == 'last' else layer
            asked = [x[at, b].double() for x in (own.logits, own.boxes)]
            cost = query_cost(*(x[None] for x in (*asked, *goal)), True)[0]
            rows, columns = linear_sum_assignment(cost.numpy())
            picked = [x[layer, b, rows].double() for x in (own.logits, own.boxes)]
            parts.append([*picked, *(x[columns] for x in goal)])
            left = [q for q in range(queries) if q not in rows.tolist()]
            silence += [-own.logits[layer, b, q].double().neg().sigmoid().log().sum() for q in left]
        totals.append([torch.cat(x) for x in zip(*parts, strict=True)])
    z_s, b_s, z_t, b_t = (torch.stack(x) for x in zip(*totals, strict=True))
    weight = z_t.sigmoid().amax(-1)
    floored = 0.1 + 0.9 * weight
    # A silent one costs -sum_k log(1 - p_k) and weighs as one without any foreground.
    cls = query_class_loss(z_s, z_t, floored, True) * floored.sum() + 0.1 * sum(silence)
    cls = cls / (floored.sum() + 0.1 * len(silence))
    assert len(silence) == 4 * max(queries - 12, 0)
    l1, giou = query_box_loss(b_s, b_t, weight)
    expected = dict(cls=cls, l1=5 * l1, giou=2 * giou)
    for name, value in expected.items():
        assert float(found[f'loss_hungarian_{name}']) == pytest.approx(float(value), rel=1e-4)


def test_assignments_of_a_batch_are_those_of_each():
    cost = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    rows, columns = assign_all(cost)
    assert columns.tolist() == [[0, 1, 2, 3]] * 3
    for one, row in zip(cost, rows, strict=True):
        best = linear_sum_assignment(one.numpy())
        assert float(one[row, range(4)].sum()) == pytest.approx(float(one.numpy()[best].sum()))
    with pytest.raises(FloatingPointError, match='not finite'):
        assign_all(cost * float('nan'))


def test_prior_takes_the_teachers_assignment():
    teacher = adapter_of()
    student = student_of(teacher, [HEADS['prior']])
    theirs = observed(teacher, student)
    (found,) = student(PIXELS, theirs, Targets()).values()
    own, other = mine(student, theirs).response.asked, theirs.response.asked
    criterion, terms = SetCriterion.of_head(student.net.bbox_head), []
    scores, classes = other.logits[-1].sigmoid().max(-1)
    objects = 0
    for b in range(2):
        queries = [q for q in range(12) if scores[b, q] >= 0.3]
        objects += len(queries)
        pairs = torch.tensor(queries), torch.arange(len(queries))
        for layer in range(2):
            terms.append(
                criterion.loss(
                    own.logits[layer, b].double(),
                    own.boxes[layer, b].double(),
                    other.boxes[-1, b, queries].double(),
                    classes[b, queries],
                    pairs,
                    (toy.SIZE, toy.SIZE),
                )
            )
    assert objects and float(found) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_memory_is_weighted_by_the_teachers_boxes():
    teacher = adapter_of(width=32)
    student = student_of(teacher, [HEADS['memory']], width=16)
    theirs = observed(teacher, student)
    (head,) = student.heads
    (found,) = student(PIXELS, theirs, Targets()).values()
    tokens = student.adapter.encode(PIXELS).encoder.tokens
    (shape,) = theirs.memory.encoder.shapes
    weight = torch.full((2, shape[0] * shape[1]), 0.1, dtype=torch.float64)
    for b in range(2):
        for place in range(weight.shape[1]):
            y, x = (place // shape[1] + 0.5) * 8, (place % shape[1] + 0.5) * 8
            for (x0, y0, x1, y1), score in zip(
                theirs.probe.boxes[b].tolist(), theirs.probe.scores[b].tolist(), strict=True
            ):
                if x0 <= x <= x1 and y0 <= y <= y1:
                    weight[b, place] = max(float(weight[b, place]), 0.1 + 0.9 * score)
    expected = masked_mimic(
        head.aligner(tokens).double(), theirs.memory.encoder.tokens.double(), weight[..., None], -1
    )
    assert weight.max() > 0.1 and float(found) == pytest.approx(float(expected), rel=1e-4)
    with torch.no_grad():
        blind = Observation(student.adapter.encode(PIXELS))
        head.fit_aligners(blind, theirs)
        (fitted,) = student(PIXELS, theirs, Targets()).values()
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


@pytest.mark.parametrize('kind', ['detr', 'deformable', 'two-stage', 'dino'])
def test_without_any_object_every_parameter_keeps_its_gradient(kind):
    """DINO's denoising queries, of which there are none without an object, included."""
    if kind == 'dino':
        changed = dict(model=toy.small_detr('dino'))
        seeing = adapter_of(**changed)
    else:
        seeing = adapter_of(kind=kind)
        changed = dict(kind=kind, decoder_layers=1, dims=16)
    student = student_of(seeing, HEADS.values(), **changed)
    # The published backbone's own first stages and norms.
    fixed = [n for n, p in student.named_parameters() if not p.requires_grad]
    assert all(kind == 'dino' and n.startswith('net.backbone.') for n in fixed)
    frozen = student.freeze_unused(seeing, (toy.SIZE, toy.SIZE))
    assert frozen == []
    teacher = seeing if kind == 'detr' else silent(seeing)
    if kind == 'detr':
        torch.nn.init.zeros_(teacher.net.bbox_head.fc_cls.weight)
        teacher.net.bbox_head.fc_cls.bias.data.copy_(torch.tensor([0.0, 0, 0, 30.0]))
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


@pytest.mark.parametrize('on_empty', ['warn', 'lower', 'stop'])
def test_an_epoch_without_detections_is_said(on_empty, capsys):
    teacher = silent(adapter_of())
    head = dict(type='mmdfkd.PseudoLabelHead', threshold=0.4, on_empty=on_empty, patience=2)
    student = student_of(teacher, [head]).train()
    theirs = observed(teacher, student)
    student(PIXELS, theirs, Targets())
    # A resumed run counts on.
    again = student_of(teacher, [head]).train()
    again.heads.load_state_dict(student.heads.state_dict())
    if on_empty == 'stop':
        with pytest.raises(NoDetectionsError, match='above 0.400 in 2 steps'):
            again(PIXELS, theirs, Targets())
        return
    again(PIXELS, theirs, Targets())
    (one,) = again.heads
    assert float(one.threshold) == pytest.approx(0.2 if on_empty == 'lower' else 0.4)
    assert int(one.empty_steps) == 0


def test_a_threshold_is_not_lowered_to_nothing():
    for threshold, least in ((0.4, 0.05), (0.03, 0.03)):
        head = MODELS.build(
            dict(type='mmdfkd.PseudoLabelHead', threshold=threshold, on_empty='lower')
        )
        for _ in range(8):
            head.nothing_seen('Nothing. ')
        assert float(head.threshold) == pytest.approx(least)


@pytest.mark.parametrize('kind', ['QueryPriorHead', 'FGDHead'])
def test_heads_without_an_object_say_so(kind, monkeypatch):
    """A warning after as many training steps on end, in any process; and then from the start."""
    said = []
    monkeypatch.setattr(object_watch, 'print_log', lambda text, *_: said.append(text))
    head = dict(type=f'mmdfkd.{kind}', threshold=0.4)
    seeing, silenced = adapter_of(), silent(adapter_of())
    student = student_of(seeing, [head]).train()
    (one,) = student.heads
    one.patience = 3
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
    older = {k: v for k, v in student.heads.state_dict().items() if 'empty' not in k}
    again.heads.load_state_dict(older)
    assert int(again.heads[0].empty_steps) == 0
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
        ('prior', dict(threshold=0)),
        ('pseudo', dict(on_empty='hide')),
        ('pseudo', dict(patience=0)),
        ('memory', dict(align='maybe')),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MODELS.build(dict(HEADS[head], **wrong))
