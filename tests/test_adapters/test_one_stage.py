"""The adapter runs mmdet's dense detectors as mmdet does, and their layouts reach the pixels."""

from functools import cache

import pytest
import torch
import toy
from mmdet.models.dense_heads import FSAFHead, RTMDetInsSepBNHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from torch import nn

from mmdfkd.adapters import (
    DenseProbe,
    Normalizer,
    OneStageAdapter,
    Probe,
    Targets,
    build_adapter,
    one_stage,
)
from mmdfkd.adapters.point_layout import plan_places

KINDS = tuple(toy.ONE_STAGE)
SIZE = 64
PIXELS = toy.images(2, SIZE)


@cache
def adapter_of(kind: str, seed: int = 0) -> OneStageAdapter:
    model = toy.one_stage_model(kind)
    return build_adapter(toy.build(model, seed), Normalizer.from_config(toy.whole(model)))


def layouts() -> Targets:
    boxes = [torch.tensor([[6.0, 6.0, 20.0, 20.0], [24.0, 20.0, 60.0, 56.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.long)]
    return Targets(boxes=boxes, box_labels=labels)


@torch.no_grad()
@pytest.mark.parametrize(('kind', 'size'), [*((k, SIZE) for k in KINDS), ('fcos', 80)])
def test_detections_are_mmdets_own_and_answers_hold_them(kind, size):
    """Also where the image is padded to the divisor."""
    adapter, pixels = adapter_of(kind), toy.images(2, size)
    assert isinstance(adapter, OneStageAdapter) and adapter.num_classes == 3
    meta = dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=dict(meta)) for _ in pixels]
    theirs = adapter.net.predict(adapter.normalizer(pixels), samples, rescale=False)
    memory = adapter.encode(pixels)
    observed = adapter.observe(pixels)
    for detections in (adapter.detect(memory), observed.detections):
        for own, their in zip(detections, theirs, strict=True):
            their = their.pred_instances
            assert len(their) > 0
            for key in ('bboxes', 'scores', 'labels'):
                assert torch.equal(own[key], their[key])

    answers = adapter.ask(memory)
    assert answers.boxes.shape[1] == sum(h * w * a for _, h, w, a in answers.grid)
    for b, found in enumerate(adapter.detect(memory)):
        boxes = answers.boxes[b].clamp(0, size)
        for box, score, label in zip(found.bboxes, found.scores, found.labels, strict=True):
            same = (boxes - box).abs().amax(1) < 1e-3
            assert (answers.scores[b, same, label] - score).abs().min() < 1e-5


@torch.no_grad()
def test_distances_are_pixels_in_training_too():
    adapter = adapter_of('fcos')
    memory, head = adapter.encode(PIXELS), adapter.head
    assert head.norm_on_bbox
    quiet = adapter.ask(memory)
    head.train()
    try:
        assert torch.equal(adapter.ask(memory).boxes, quiet.boxes)
    finally:
        head.eval()


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_rows_are_those_of_the_probe(kind):
    adapter = adapter_of(kind)
    observation = adapter.observe(PIXELS)
    probe, answers = observation.probe, observation.response.answers
    assert not observation.response.logits.requires_grad and observation.response.towers == {}
    count = [len(b) for b in probe.boxes]
    assert count == [min(100, answers.boxes.shape[1])] * 2
    rows = observation.response.logits.split(count)
    for b, row in enumerate(rows):
        assert torch.equal(row[:, :3], answers.logits[b, probe.index[b]])
        assert row[:, 3].eq(0).all() and (probe.scores[b].diff() <= 0).all()
    memory = adapter.encode(PIXELS)
    assert torch.equal(adapter.answer(memory).logits, observation.response.logits)
    # Asked at boxes alone: the place whose box is nearest.
    wanted = [b[:3] for b in probe.boxes]
    response = adapter.answer(memory, Probe(wanted, [b.new_ones(3) for b in wanted]))
    for b, row in enumerate(response.logits.split(3)):
        for box, said in zip(wanted[b], row, strict=True):
            overlap = bbox_overlaps(answers.boxes[b], box[None], mode='giou')[:, 0]
            assert torch.equal(said[:3], answers.logits[b, overlap.argmax()])


@torch.no_grad()
def test_another_grid_is_asked_at_the_boxes():
    probe = adapter_of('retina').propose(adapter_of('retina').encode(PIXELS))
    assert isinstance(probe, DenseProbe)
    response = adapter_of('rtmdet').answer(adapter_of('rtmdet').encode(PIXELS), probe)
    assert response.logits.shape == (sum(map(len, probe.boxes)), 4)


@pytest.mark.parametrize('most', [1, 1000, 1 << 22])
def test_nearest_places_are_looked_up_in_parts(most, monkeypatch):
    """The same places, ties and no boxes included, and never more pairs at once than allowed."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, 2, generator=generator).sort(1).values.flatten(1) * 64
    own, wanted = torch.cat([corners[:200], corners[:50]]), corners[180:]
    whole = bbox_overlaps(own, wanted, mode='giou').argmax(0)
    sizes = []

    def counted(a, b, mode):
        sizes.append(len(a) * len(b))
        return bbox_overlaps(a, b, mode=mode)

    monkeypatch.setattr(one_stage, '_MOST_PAIRS', most)
    monkeypatch.setattr(one_stage, 'bbox_overlaps', counted)
    assert torch.equal(one_stage._nearest(own, wanted), whole)
    assert max(sizes) <= max(most, len(own)) and sum(sizes) == 250 * 120
    assert one_stage._nearest(own, wanted[:0]).shape == (0,)


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_votes_places_and_sizes(kind):
    adapter = adapter_of(kind)
    memory = adapter.encode(PIXELS)
    answers = adapter.ask(memory)
    votes, boxes = adapter.class_places(memory)
    assert torch.equal(votes, adapter.class_votes(memory)) and 0 <= votes.min() <= votes.max() <= 1
    for b in range(2):
        for label in range(3):
            place = int(answers.scores[b, :, label].argmax())
            wanted = answers.boxes[b, place].clamp(0, SIZE)
            wanted[2:] = wanted[2:].maximum(wanted[:2])
            assert torch.equal(boxes[b, label], wanted)
    if kind == 'retina':
        sizes = adapter.box_sizes()
        assert len(sizes) == 5 * 9 and sizes.prod(1).sqrt().min() == pytest.approx(32, rel=1e-3)
    else:
        assert adapter.sizes_from_images
        with pytest.raises(ValueError, match='read from images'):
            adapter.box_sizes()
        sizes = adapter.box_sizes(memory)
        assert sizes.shape[1] == 2 and len(sizes) and sizes.min() >= 0 and sizes.max() <= SIZE


@pytest.mark.parametrize('kind', KINDS)
def test_layout_loss_is_per_image_and_reaches_its_pixels(kind):
    adapter = adapter_of(kind)
    pixels = PIXELS.clone().requires_grad_()
    targets = layouts()
    state = torch.get_rng_state()
    losses = adapter.target_loss(adapter.encode(pixels), targets)
    assert torch.equal(torch.get_rng_state(), state)
    assert losses.shape == (2,) and losses.isfinite().all()
    for i in range(2):
        (grad,) = torch.autograd.grad(losses[i], pixels, retain_graph=True)
        assert grad[i].abs().sum() > 0 and grad[1 - i].abs().sum() == 0
    plan = targets.plan[adapter.net]
    with torch.no_grad():
        again = adapter.target_loss(adapter.encode(PIXELS), targets)
        torch.testing.assert_close(again, losses.detach())
        assert targets.plan[adapter.net] is plan
        one = Targets(boxes=targets.boxes[:1], box_labels=targets.box_labels[:1])
        alone = adapter.target_loss(adapter.encode(PIXELS[:1]), one)
        torch.testing.assert_close(alone[0], again[0], atol=1e-4, rtol=1e-4)
    # Every box has a place, and no background place lies in one.
    assert set(plan[0].matched.tolist()) == {0, 1}
    assert plan[1].negative.all() and not len(plan[1].positive)


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_layout_loss_is_lower_for_the_class_that_is_seen(kind):
    adapter = adapter_of(kind)
    memory = adapter.encode(PIXELS)
    targets = layouts()
    adapter.target_loss(memory, targets)
    places = targets.plan[adapter.net][0]
    said = adapter.ask(memory).logits[0, places.positive]
    seen = torch.stack([said[places.matched == i].mean(0).argmax() for i in range(2)])
    values = []
    for labels in (seen, (seen + 1) % 3):
        one = Targets(boxes=targets.boxes[:1], box_labels=[labels])
        values.append(adapter.target_loss(adapter.encode(PIXELS[:1]), one)[0])
    assert values[0] < values[1]


def test_places_of_a_layout():
    """Two levels; a small box in a large one; a tiny one between the places."""
    fine = torch.stack(torch.meshgrid(*[torch.arange(8.0) * 8 + 4] * 2, indexing='xy'), -1)
    coarse = torch.stack(torch.meshgrid(*[torch.arange(2.0) * 32 + 16] * 2, indexing='xy'), -1)
    points = torch.cat([fine.flatten(0, 1), coarse.flatten(0, 1)])
    strides = torch.cat([torch.full((64,), 8.0), torch.full((4,), 32.0)])
    boxes = torch.tensor([[0.0, 0, 64, 64], [16, 16, 32, 32], [41, 41, 43, 43]])
    ranges = torch.cat([torch.tensor([[0.0, 30]]).expand(64, 2), torch.tensor([[30, 1e8]] * 4)])
    plan = plan_places(boxes, points, strides, ranges)
    owned = {i: plan.positive[plan.matched == i] for i in range(3)}
    assert owned[0].tolist() == [64, 65, 66, 67]
    assert owned[1].tolist() == [18, 19, 26, 27]
    assert points[owned[2]].tolist() == [[44, 44]]
    assert not plan.negative.any()
    empty = plan_places(torch.zeros(0, 4), points, strides)
    assert empty.negative.all() and not len(empty.positive)
    # Without ranges: the level whose eight strides are nearest to the edge.
    usual = plan_places(torch.tensor([[0.0, 0, 64, 64]]), points, strides)
    assert (usual.positive < 64).all() and len(usual.positive) == 4


def test_what_it_does_not_run_is_refused():
    with pytest.raises(TypeError, match=r'two-stage.*DETR-like.*one-stage'):
        build_adapter(nn.Linear(1, 1), Normalizer([0] * 3, [1] * 3, 'rgb'))
    net = toy.build(toy.one_stage_model('retina'))
    head = net.bbox_head
    head.__class__ = type('Own', (type(head),), {})
    assert OneStageAdapter.supports(net)
    head.__class__ = FSAFHead
    assert not OneStageAdapter.supports(net)
    # RTMDet-Ins, which is an RTMDet by name.
    net = toy.build(toy.one_stage_model('rtmdet'))
    net.bbox_head.__class__ = RTMDetInsSepBNHead
    with pytest.raises(
        TypeError, match=r'a RTMDet with a RTMDetInsSepBNHead\..*RTMDet, of boxes without masks'
    ):
        build_adapter(net, Normalizer([0] * 3, [1] * 3, 'rgb'))
