"""The adapter runs the five DETRs as mmdet does, at their own queries and at foreign ones."""

from functools import cache

import numpy as np
import pytest
import torch
import toy
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmengine.structures import InstanceData

from mmdfkd.adapters import (
    DetrAdapter,
    Normalizer,
    Observation,
    Probe,
    QueryProbe,
    Targets,
    build_adapter,
)
from mmdfkd.adapters.decoders import _scattered, _turned, decoder_of
from mmdfkd.adapters.matching import SetCriterion, assign, in_shares, place_cost
from mmdfkd.distillers.student import Student
from mmdfkd.registry import MODELS

CONFIGS = toy.DETRS
KINDS = [kind for kind in CONFIGS if kind != 'refine']
QUERIES = toy.QUERIES


@cache
def adapter_of(kind: str, seed: int = 0, width: int = 32) -> DetrAdapter:
    model = toy.small_detr(kind, width)
    return build_adapter(toy.build(model, seed), Normalizer.from_config(toy.whole(model)))


def samples_of(adapter, pixels):
    """What mmdet's loader and preprocessor make of RGB in [0, 1]."""
    bgr = [(image * 255).round().byte().flip(0) for image in pixels]
    shape = dict(img_shape=pixels.shape[-2:], ori_shape=pixels.shape[-2:], scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=dict(shape)) for _ in bgr]
    return adapter.net.data_preprocessor(dict(inputs=bgr, data_samples=samples), False)


def layouts():
    boxes = [torch.tensor([[6.0, 6.0, 20.0, 20.0], [24.0, 20.0, 50.0, 60.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.long)]
    return Targets(boxes=boxes, box_labels=labels)


def same(own, other, **tolerance):
    tolerance = tolerance or dict(atol=0, rtol=0)
    torch.testing.assert_close(own.logits, other.logits, **tolerance)
    torch.testing.assert_close(own.boxes, other.boxes, **tolerance)


@torch.no_grad()
@pytest.mark.parametrize('size', [64, 80])
@pytest.mark.parametrize('kind', CONFIGS)
def test_answers_and_detections_are_mmdets_own(kind, size):
    """Also where the image is padded to the divisor, and masked."""
    adapter, pixels = adapter_of(kind), toy.images(2, size)
    net = adapter.net
    data = samples_of(adapter, pixels)
    inputs = adapter.normalizer(pixels)
    torch.testing.assert_close(inputs, data['inputs'], atol=1e-4, rtol=1e-4)

    memory = adapter.encode(pixels, ['encoder.layers.0'])
    encoder = memory.encoder
    assert (encoder.mask is None) == (size == 64)
    assert encoder.tokens.shape[1] == sum(h * w for h, w in encoder.shapes)
    assert torch.equal(memory.taps['encoder.layers.0'], encoder.tokens)

    logits, boxes = net.forward(inputs, data['data_samples'], mode='tensor')[:2]
    assert logits.shape[:3] == (2, 2, QUERIES) and boxes.std() > 0.01
    response = adapter.answer(memory)
    assert torch.equal(response.own.logits, logits) and torch.equal(response.own.boxes, boxes)

    predicted = net.predict(inputs, data['data_samples'], rescale=False)
    for own, their in zip(adapter.detect(memory), predicted, strict=True):
        their = their.pred_instances
        assert len(own) == 10
        assert torch.equal(own.bboxes, their.bboxes) and torch.equal(own.labels, their.labels)
        assert torch.equal(own.scores, their.scores)


@torch.no_grad()
@pytest.mark.parametrize('kind', CONFIGS)
def test_asked_its_own_queries_it_answers_as_by_itself(kind):
    adapter, pixels = adapter_of(kind), toy.images(2, 64)
    memory = adapter.encode(pixels)
    probe = adapter.propose(memory)
    assert isinstance(probe, QueryProbe) and not probe.boxes[0].requires_grad
    response = adapter.answer(memory, probe)
    own = adapter.own_answers(memory)
    # Boxes that queries start from pass a sigmoid and back.
    same(response.asked, own, atol=1e-4, rtol=1e-3)
    assert response.logits.shape == (2 * QUERIES, 4)
    assert response.deltas.shape == (2 * QUERIES, 4)
    for boxes, scores, p in zip(probe.boxes, probe.scores, own.probabilities, strict=True):
        assert boxes.shape == (QUERIES, 4) and boxes.min() >= 0 and boxes.max() <= 64
        assert torch.equal(scores, p.max(-1).values)


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_observation_is_one_pass_of_the_decoder(kind):
    adapter, pixels = adapter_of(kind), toy.images(2, 64)
    calls = []
    hook = adapter.net.decoder.register_forward_hook(lambda *_: calls.append(1))
    observation = adapter.observe(pixels)
    assert observation.response.own is observation.response.asked
    hook.remove()
    assert len(calls) == 1
    assert observation.probe.fresh is None
    assert adapter.observe(pixels, respond=False).response is None


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_of_the_same_width_is_asked_the_teachers_queries(kind):
    """With its teacher's decoder, heads and encoder memory it would answer as the teacher."""
    teacher, student, pixels = adapter_of(kind), adapter_of(kind, seed=1), toy.images(2, 64)
    observation = teacher.observe(pixels)
    response = student.answer(student.encode(pixels), observation.probe)
    assert response.asked is not None and response.logits.requires_grad
    assert not torch.equal(response.asked.boxes, response.own.boxes)
    crossed = teacher.answer(observation.memory, observation.probe).asked
    same(crossed, observation.response.asked, atol=1e-4, rtol=1e-3)
    # The teacher's decoder on the student's memory: both reach each other where widths agree.
    other = teacher.answer(student.encode(pixels), observation.probe)
    weight = next(student.net.neck.parameters())
    (grad,) = torch.autograd.grad(other.logits[:, 0].sum(), weight)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize('kind', ['detr', 'dab', 'deformable', 'dino'])
def test_a_student_of_another_width(kind):
    teacher, pixels = adapter_of(kind), toy.images(2, 64)
    student = adapter_of(kind, seed=1, width=16)
    observation = teacher.observe(pixels)
    response = student.answer(student.encode(pixels), observation.probe)
    assert response.logits.shape == observation.response.logits.shape
    assert response.logits.requires_grad
    if kind in ('dab', 'dino'):
        # The boxes are the same to both.
        assert response.asked.boxes.shape == (2, 2, QUERIES, 4)
    else:
        assert response.asked is None
        own = response.own.boxes[-1]
        for b in range(2):
            wanted = in_shares(observation.probe.boxes[b], (64, 64))
            nearest = place_cost(own[b], wanted, (64, 64)).argmin(0)
            rows = response.deltas[b * QUERIES : (b + 1) * QUERIES]
            assert torch.equal(rows, own[b][nearest])


@torch.no_grad()
def test_boxes_alone_are_answered_by_the_nearest_query():
    adapter = adapter_of('detr')
    memory = adapter.encode(toy.images(2, 64))
    own = adapter.own_answers(memory)
    boxes = own.pixels((64, 64))
    probe = Probe([boxes[0, 3:5], boxes[1, :0]], [torch.ones(2), torch.ones(0)])
    response = adapter.answer(memory, probe)
    assert torch.equal(response.logits, own.with_background[0, 3:5])
    assert torch.equal(response.deltas, own.boxes[-1, 0, 3:5])


@torch.no_grad()
def test_boxes_of_another_kind_can_be_asked():
    """DAB-DETR's anchors and DINO's boxes mean the same; embeddings of DETR do not."""
    pixels = toy.images(2, 64)
    probes = {kind: adapter_of(kind).observe(pixels).probe for kind in ('dab', 'dino', 'detr')}
    for asked, by in (('dab', 'dino'), ('dino', 'dab'), ('two-stage', 'dab')):
        response = adapter_of(asked).answer(adapter_of(asked).encode(pixels), probes[by])
        assert response.asked is not None
    for asked in ('dab', 'deformable'):
        response = adapter_of(asked).answer(adapter_of(asked).encode(pixels), probes['detr'])
        assert response.asked is None and len(response.logits) == 2 * QUERIES


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_fresh_queries_are_a_function_of_seed_and_image(kind):
    adapter, pixels = adapter_of(kind), toy.images(2, 64)
    before = torch.get_rng_state()
    one = adapter.observe(pixels, fresh=True, seed=3, serials=[7, 8])
    assert torch.equal(torch.get_rng_state(), before)
    two = adapter.observe(pixels.flip(0), fresh=True, seed=3, serials=[8, 7])
    for name in ('content', 'position', 'references'):
        first, second = (getattr(o.probe.fresh, name) for o in (one, two))
        own = getattr(one.probe.queries, name)
        assert (first is None) == (own is None)
        if first is None:
            continue
        # Reductions over a batch in another order may round otherwise.
        torch.testing.assert_close(first, second.flip(0), atol=1e-3, rtol=1e-3)
        assert first.shape == own.shape and not torch.allclose(first, own)
        assert not torch.allclose(first[0], first[1])
    assert one.response.fresh.boxes.shape == (2, 2, QUERIES, 4)
    student = adapter_of(kind, seed=1)
    assert student.answer(student.encode(pixels), one.probe).fresh is not None
    with pytest.raises(ValueError, match='global index'):
        adapter.observe(pixels, fresh=True)


def test_turned_queries_keep_mean_and_covariance():
    own = torch.randn(1, 4000, 3, generator=torch.Generator().manual_seed(0))
    own = own @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -2.0], [0.0, 0.0, 1.0]]) + 5
    made, copy_ = _turned([np.random.default_rng(0)], own, own[..., :2])
    assert torch.equal(made[..., :2], copy_)
    torch.testing.assert_close(made[0].mean(0), own[0].mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(made[0].T.cov(), own[0].T.cov(), atol=0.4, rtol=0)
    boxes = torch.rand(1, 4000, 4)
    placed = _scattered([np.random.default_rng(0)], boxes)
    assert torch.equal(placed[0, :, 2:].sort(0).values, boxes[0, :, 2:].sort(0).values)
    assert abs(float(placed[0, :, 0].mean()) - 0.5) < 0.02


@pytest.mark.parametrize('kind', KINDS)
def test_it_runs_in_train_mode_without_ground_truth(kind):
    adapter = adapter_of(kind, seed=1)
    probe = adapter_of(kind).observe(toy.images(2, 64)).probe
    adapter.net.train()
    memory = adapter.encode(toy.images(2, 64))
    response = adapter.answer(memory, probe)
    (response.own.logits.sum() + response.asked.boxes.sum()).backward()
    assert adapter.net.training and adapter.net.decoder.training
    assert adapter.net.bbox_head.training
    learned = getattr(adapter.net, 'query_embedding', None)
    if learned is not None:
        assert learned.weight.grad.abs().sum() > 0
    adapter.net.zero_grad()
    adapter.net.eval()


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_votes_and_places(kind):
    adapter = adapter_of(kind)
    memory = adapter.encode(toy.images(3, 64))
    own = adapter.own_answers(memory)
    votes, boxes = adapter.class_places(memory)
    assert adapter.num_classes == 3 and votes.shape == (3, 3) and boxes.shape == (3, 3, 4)
    assert torch.equal(votes, adapter.class_votes(memory))
    last = own.logits[-1].double()
    for b in range(3):
        for c in range(3):
            said = [
                float(row.softmax(-1)[c] if kind == 'detr' else row[c].sigmoid()) for row in last[b]
            ]
            assert float(votes[b, c]) == pytest.approx(max(said), rel=1e-4)
            place = own.boxes[-1, b, said.index(max(said))]
            place = (bbox_cxcywh_to_xyxy(place) * 64).clamp(0, 64)
            torch.testing.assert_close(boxes[b, c], place, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_too_few_tokens_for_its_queries_are_said():
    model = toy.small_detr('dino', num_queries=500)
    adapter = build_adapter(toy.build(model), Normalizer.from_config(toy.whole(model)))
    with pytest.raises(ValueError, match='chooses 500 queries'):
        adapter.observe(toy.images(1, 64))


def test_box_sizes_are_read_from_images():
    adapter = adapter_of('detr')
    memory = adapter.encode(toy.images(8, 64))
    sizes = adapter.box_sizes(memory)
    # A quarter of 12 queries of 8 images, without the smallest and the largest.
    assert sizes.shape == (22, 2) and (sizes >= 0).all() and (sizes <= 64).all()
    with pytest.raises(ValueError, match='read from images'):
        adapter.box_sizes()


@pytest.mark.parametrize('kind', KINDS)
def test_layout_loss_is_mmdets_of_each_image(kind):
    """The set loss of its head for one image, with the head's own assigner."""
    adapter = adapter_of(kind)
    pixels = toy.images(2, 64).requires_grad_()
    targets = layouts()
    losses = adapter.target_loss(adapter.encode(pixels), targets)
    own = adapter.own_answers(adapter.encode(pixels))
    head = adapter.net.bbox_head
    for b in range(2):
        truth = InstanceData(bboxes=targets.boxes[b], labels=targets.box_labels[b])
        terms = head.loss_by_feat_single(
            own.logits[-1, b : b + 1], own.boxes[-1, b : b + 1], [truth], [dict(img_shape=(64, 64))]
        )
        torch.testing.assert_close(losses[b], sum(terms).squeeze(), atol=1e-4, rtol=1e-4)
    for b in range(2):
        # Each image, the empty one too, feels its own loss and no other's.
        (grad,) = torch.autograd.grad(losses[b], pixels, retain_graph=True)
        assert grad[b].abs().sum() > 0 and grad[1 - b].abs().sum() < 1e-6 * grad[b].abs().sum()


@pytest.mark.parametrize('kind', KINDS)
def test_its_own_loss_runs_the_encoder_once(kind):
    """What mmdet's training says, on the memory that is there; with its gradient."""
    adapter, pixels, layout = adapter_of(kind), toy.images(2, 64), layouts()
    objects = [
        InstanceData(bboxes=boxes, labels=labels)
        for boxes, labels in zip(layout.boxes, layout.box_labels, strict=True)
    ]
    net, calls = adapter.net, []
    # The layers are in evaluation mode: no dropout draws anew.
    hook = net.encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        memory = adapter.encode(pixels)
        torch.manual_seed(0)
        found = adapter.own_loss(memory, objects)
        assert len(calls) == 1
        samples = adapter._samples(memory)
        for sample, one in zip(samples, objects, strict=True):
            sample.gt_instances = one
        net.training = True
        torch.manual_seed(0)
        wanted = net.loss(adapter.normalizer(pixels), samples)
        assert len(calls) == 2
    finally:
        hook.remove()
        net.training = False
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.squeeze(), atol=1e-5, rtol=1e-5)
    weight = next(net.encoder.parameters())
    grads = [torch.autograd.grad(sum(x.values()).sum(), weight)[0] for x in (found, wanted)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)
    assert not {'extract_feat', 'forward_encoder'} & set(vars(net))


@pytest.mark.parametrize('kind', KINDS)
def test_a_batch_without_objects_reaches_every_part(kind):
    adapter = adapter_of(kind)
    empty = Targets(
        boxes=[torch.zeros(0, 4)] * 2, box_labels=[torch.zeros(0, dtype=torch.long)] * 2
    )
    loss = adapter.target_loss(adapter.encode(toy.images(2, 64)), empty).sum()
    head = adapter.net.bbox_head
    last = (
        [head.cls_branches[1], head.reg_branches[1]]
        if hasattr(head, 'cls_branches')
        else [head.fc_cls, head.fc_reg]
    )
    parameters = [p for part in last for p in part.parameters()]
    grads = torch.autograd.grad(loss, parameters)
    assert all(g.isfinite().all() for g in grads) and grads[0].abs().sum() > 0


@pytest.mark.parametrize(('kind', 'matchings'), [('detr', 4), ('dino', 8)])
def test_a_box_keeps_its_query_after_some_calls(kind, matchings, monkeypatch):
    adapter, targets, made = adapter_of(kind), layouts(), []
    match = SetCriterion.match

    def counted(self, *arguments):
        made.append(match(self, *arguments))
        return made[-1]

    monkeypatch.setattr(adapter, 'rematch', 2, raising=False)
    monkeypatch.setattr(SetCriterion, 'match', counted)
    with torch.no_grad():
        for seed in range(4):
            adapter.target_loss(adapter.encode(toy.images(2, 64, seed)), targets)
        assert len(made) == matchings
        # Another network has queries of its own.
        other = adapter_of(kind, seed=1)
        other.target_loss(other.encode(toy.images(2, 64)), targets)
    assert set(targets.matching.found) == {adapter.net, other.net}


def criterion(sigmoid):
    weight = None if sigmoid else torch.tensor([1.0, 1.0, 1.0, 0.1])
    return SetCriterion(sigmoid, 2.0, 5.0, 2.0, class_weight=weight)


def case(sigmoid, dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(6, 3 if sigmoid else 4, generator=generator, dtype=torch.float64)
    boxes = torch.rand(6, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2
    wanted = torch.rand(2, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2
    return logits.to(dtype), boxes.to(dtype), wanted.to(dtype), torch.tensor([2, 0])


@pytest.mark.parametrize('sigmoid', [True, False])
def test_set_loss_against_the_equations(sigmoid):
    logits, boxes, wanted, labels = case(sigmoid)
    pairs = torch.tensor([4, 1]), torch.tensor([0, 1])
    cls = 0.0
    for q, row in enumerate(logits):
        label = {4: 2, 1: 0}.get(q, 3)
        if sigmoid:
            for c, z in enumerate(row):
                p = 1 / (1 + (-z).exp())
                if c == label:
                    cls -= 0.25 * (1 - p) ** 2 * p.log() / 2
                else:
                    cls -= 0.75 * p**2 * (1 - p).log() / 2
        else:
            cls -= (1.0 if label < 3 else 0.1) * row.log_softmax(0)[label] / (2 * 1.0 + 4 * 0.1)
    own, scale = boxes[[4, 1]], 100.0
    giou = bbox_overlaps(
        bbox_cxcywh_to_xyxy(own) * scale,
        bbox_cxcywh_to_xyxy(wanted) * scale,
        mode='giou',
        is_aligned=True,
    )
    expected = 2 * cls + 5 * (own - wanted).abs().sum() / 2 + 2 * (1 - giou).mean()
    loss = criterion(sigmoid).loss(logits, boxes, wanted, labels, pairs, (100, 100))
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=1e-9)
    leaves = logits.requires_grad_(), boxes.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, b: criterion(sigmoid).loss(z, b, wanted, labels, pairs, (100, 100)), leaves
    )
    half = case(sigmoid, torch.bfloat16)
    rough = criterion(sigmoid).loss(*half, pairs, (100, 100))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), loss.detach(), atol=0.1, rtol=0.05)


def test_matching_is_the_best_of_all():
    cost = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    rows, columns = assign(cost)
    assert columns.tolist() == [0, 1, 2]
    best = min(
        float(cost[i, 0] + cost[j, 1] + cost[k, 2])
        for i in range(5)
        for j in range(5)
        for k in range(5)
        if len({i, j, k}) == 3
    )
    assert float(cost[rows, columns].sum()) == pytest.approx(best)
    # More boxes than queries: some box has none.
    assert len(assign(cost.T)[0]) == 3
    with pytest.raises(FloatingPointError, match='not finite'):
        assign(cost * float('nan'))


def test_heads_that_read_responses_read_it():
    """Zero at agreement; the choice of queries is trained by the encoder's scores."""
    pixels = toy.images(2, 64)
    teacher, student = adapter_of('dino'), adapter_of('dino', seed=1)
    theirs = teacher.observe(pixels)
    memory = student.encode(pixels)
    mine = Observation(memory, theirs.probe, student.answer(memory, theirs.probe))
    for name in ('RoIResponseHead', 'RPNResponseHead'):
        head = MODELS.build(dict(type=f'mmdfkd.{name}'))
        zero = head(theirs, theirs, Targets(), pixels)
        assert all(abs(float(loss)) < 1e-6 for loss in zero.values())
        losses = head(mine, theirs, Targets(), pixels)
        assert all(loss > 0 for loss in losses.values())
    chooser = student.net.bbox_head.cls_branches[2].weight
    (grad,) = torch.autograd.grad(sum(losses.values()), chooser)
    assert grad.abs().sum() > 0
    h, w = theirs.memory.encoder.shapes[0]
    assert theirs.response.dense_logits[0].shape == (2, 1, h, w)
    assert theirs.response.dense_deltas[0].shape == (2, 4, h, w)


@torch.no_grad()
@pytest.mark.parametrize('kind', ['two-stage', 'dino'])
def test_proposals_are_what_mmdet_chooses_from(kind):
    """Of all places for Deformable DETR, of the chosen ones for DINO, as mmdet trains them."""
    adapter = adapter_of(kind)
    # Padded to 96 px, so that some places are masked.
    memory = adapter.encode(toy.images(2, 80))
    net, before = adapter.net, memory.encoder.before_decoder
    logits, deltas = adapter.decoder.proposals(memory.encoder)
    _, proposals = net.gen_encoder_output_proposals(
        before['memory'], before['memory_mask'], before['spatial_shapes']
    )
    boxes = (deltas + proposals).sigmoid()
    given, layout = {}, layouts()
    if kind == 'dino':
        given['batch_data_samples'] = adapter._samples(memory)
        for sample, own, labels in zip(
            given['batch_data_samples'], layout.boxes, layout.box_labels, strict=True
        ):
            sample.gt_instances = InstanceData(bboxes=own, labels=labels)
    net.training = True
    try:
        _, wanted = net.pre_decoder(**before, **given)
    finally:
        net.training = False
    if kind == 'dino':
        logits, chosen = logits.topk(QUERIES, 1)
        boxes = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
        torch.testing.assert_close(logits, wanted['enc_outputs_class'].amax(-1))
    else:
        torch.testing.assert_close(logits, wanted['enc_outputs_class'][..., 0])
    assert boxes.isfinite().all() and boxes.std() > 0.01
    torch.testing.assert_close(boxes, wanted['enc_outputs_coord'])


def test_every_trained_parameter_of_a_student_gets_a_gradient():
    """What the heads do not reach is found by one step on a blank image, and frozen."""
    pixels, teacher = toy.images(2, 64), adapter_of('dino')
    net = toy.build(toy.small_detr('dino'), seed=3)
    heads = [MODELS.build(dict(type=f'mmdfkd.{n}')) for n in ('RoIResponseHead', 'RPNResponseHead')]
    student = Student(net, teacher.normalizer, heads)
    frozen = student.freeze_unused(teacher, (64, 64))
    assert 'dn_query_generator' in frozen and not any('backbone' in name for name in frozen)
    student.train()
    losses = student(pixels, teacher.observe(pixels), Targets())
    sum(losses.values()).backward()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert any('decoder.layers.1' in name for name in trained)
    assert not [name for name, p in trained.items() if p.grad is None]


def test_what_descends_from_it_but_differs_is_refused():
    dino = type(adapter_of('dino').net)
    assert decoder_of(adapter_of('dino').net) is not None
    for name in ('DDQDETR', 'GroundingDINO'):
        assert not DetrAdapter.supports(object.__new__(type(name, (dino,), {})))
    assert not DetrAdapter.supports(torch.nn.Linear(1, 1))
