"""The adapter runs a detector as mmdet itself does, and its layout loss reaches the pixels."""

import numpy as np
import pytest
import torch
import toy
from mmdet.models.roi_heads import (
    DynamicRoIHead,
    GridRoIHead,
    MaskScoringRoIHead,
    PISARoIHead,
    TridentRoIHead,
)
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi

from mmdfkd.adapters import Normalizer, Targets, TwoStageAdapter, build_adapter


@pytest.fixture(scope='module')
def adapter():
    net = toy.build(toy.detector_model())
    return build_adapter(net, Normalizer.from_config(toy.whole(toy.detector_model())))


def _own_inputs(net, pixels):
    """What mmdet's loader and preprocessor make of RGB in [0, 1]."""
    bgr = [(image * 255).round().byte().flip(0) for image in pixels]
    shape = dict(img_shape=pixels.shape[-2:], ori_shape=pixels.shape[-2:], scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=dict(shape)) for _ in bgr]
    return net.data_preprocessor(dict(inputs=bgr, data_samples=samples), False)


def _targets():
    boxes = [torch.tensor([[6.0, 6.0, 20.0, 20.0], [24.0, 20.0, 44.0, 40.0]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.long)]
    return Targets(boxes=boxes, box_labels=labels)


def test_is_chosen_for_it(adapter):
    assert isinstance(adapter, TwoStageAdapter)
    assert adapter.family == 'two-stage' and adapter.num_classes == 3


@torch.no_grad()
@pytest.mark.parametrize('size', [48, 40])
def test_proposals_answers_and_detections_are_mmdets_own(adapter, size):
    """Also where the image is padded to the divisor."""
    net, pixels = adapter.net, toy.images(2, size)
    data = _own_inputs(net, pixels)
    memory = adapter.encode(pixels)
    feats = net.extract_feat(data['inputs'])
    for own, theirs in zip(memory.feats, feats, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4)

    theirs = net.rpn_head.predict(feats, data['data_samples'], rescale=False)
    probe = adapter.propose(memory)
    assert sum(len(b) for b in probe.boxes) > 5
    for boxes, scores, their in zip(probe.boxes, probe.scores, theirs, strict=True):
        torch.testing.assert_close(boxes, their.bboxes, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(scores, their.scores, atol=1e-4, rtol=1e-3)

    response = adapter.answer(memory, probe)
    forward = net.roi_head._bbox_forward(feats, bbox2roi(probe.boxes))
    torch.testing.assert_close(response.logits, forward['cls_score'], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(response.deltas, forward['bbox_pred'], atol=1e-3, rtol=1e-3)
    for own, their in zip(response.dense_logits, net.rpn_head(feats)[0], strict=True):
        torch.testing.assert_close(own, their, atol=1e-4, rtol=1e-3)

    predicted = net.predict(data['inputs'], data['data_samples'], rescale=False)
    assert sum(len(p.pred_instances) for p in predicted) > 0
    for own, their in zip(adapter.detect(memory), predicted, strict=True):
        their = their.pred_instances
        torch.testing.assert_close(own.bboxes, their.bboxes, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(own.scores, their.scores, atol=1e-4, rtol=1e-3)
        assert torch.equal(own.labels, their.labels)


@torch.no_grad()
def test_class_votes_are_the_best_probability_at_any_proposal(adapter):
    memory = adapter.encode(toy.images(3))
    votes = adapter.class_votes(memory)
    probe = adapter.propose(memory)
    logits = adapter.answer(memory, probe).logits.split([len(b) for b in probe.boxes])
    for vote, part in zip(votes, logits, strict=True):
        assert torch.equal(vote, part.softmax(-1)[:, :3].max(0).values)


@torch.no_grad()
def test_class_votes_without_proposals(adapter, monkeypatch):
    rpn = adapter.net.rpn_head
    monkeypatch.setitem(rpn.test_cfg, 'min_bbox_size', 1000)
    votes = adapter.class_votes(adapter.encode(toy.images(2)))
    assert votes.shape == (2, 3) and votes.eq(0).all()


@torch.no_grad()
def test_class_places_are_the_proposals_that_say_most(adapter):
    """Class probability times objectness, looked up proposal by proposal."""
    memory = adapter.encode(toy.images(3))
    votes, boxes = adapter.class_places(memory)
    assert votes.shape == (3, 3) and boxes.shape == (3, 3, 4)
    probe = adapter.propose(memory)
    logits = adapter.answer(memory, probe).logits.split([len(b) for b in probe.boxes])
    for i, part in enumerate(logits):
        for label in range(3):
            said = [
                float(row.double().softmax(-1)[label]) * float(score)
                for row, score in zip(part, probe.scores[i], strict=True)
            ]
            assert float(votes[i, label]) == pytest.approx(max(said), rel=1e-4)
            assert torch.equal(boxes[i, label], probe.boxes[i][int(np.argmax(said))])


@torch.no_grad()
def test_class_places_without_proposals(adapter, monkeypatch):
    monkeypatch.setitem(adapter.net.rpn_head.test_cfg, 'min_bbox_size', 1000)
    votes, boxes = adapter.class_places(adapter.encode(toy.images(2)))
    assert votes.eq(0).all() and boxes.eq(0).all() and boxes.shape == (2, 3, 4)


def test_box_sizes_are_the_anchors(adapter):
    """Scale 3 on strides of 4, 8 and 16, each of two shapes and one area."""
    sizes = adapter.box_sizes()
    torch.testing.assert_close(
        sizes.prod(1), torch.tensor([12.0, 12, 24, 24, 48, 48]).square(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(sizes[:, 1] / sizes[:, 0], torch.tensor([0.5, 1.0] * 3))


def test_nothing_of_the_teachers_side_has_a_graph(adapter):
    observation = adapter.observe(toy.images(1), ['backbone.blocks.0'])
    assert not observation.response.logits.requires_grad
    assert not observation.memory.feats[0].requires_grad
    assert set(observation.memory.taps) == {'backbone.blocks.0'}
    assert adapter.observe(toy.images(1), respond=False).response is None


def test_layout_loss_reaches_the_pixels_of_every_image(adapter):
    pixels = toy.images(2).requires_grad_()
    losses = adapter.target_loss(adapter.encode(pixels), _targets())
    assert losses.shape == (2,) and losses.isfinite().all()
    (grad,) = torch.autograd.grad(losses.sum(), pixels)
    assert (grad.flatten(1).abs().sum(1) > 0).all()


@torch.no_grad()
def test_layout_loss_of_an_image_does_not_depend_on_the_others(adapter):
    pixels = toy.images(2)
    both = adapter.target_loss(adapter.encode(pixels), _targets())
    for i in range(2):
        one = Targets(boxes=[_targets().boxes[i]], box_labels=[_targets().box_labels[i]])
        alone = adapter.target_loss(adapter.encode(pixels[i : i + 1]), one)
        torch.testing.assert_close(alone[0], both[i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_assignment_is_made_once(adapter):
    targets = _targets()
    memory = adapter.encode(toy.images(2))
    first = adapter.target_loss(memory, targets)
    plan = targets.plan
    assert plan is not None
    assert torch.equal(adapter.target_loss(memory, targets), first)
    assert targets.plan is plan


@torch.no_grad()
def test_networks_of_other_anchors_share_a_layout(adapter):
    """Each has its own assignment: of other anchors, and of a DETR's queries beside them."""
    model = toy.detector_model(dims=16)
    model['rpn_head']['anchor_generator'].update(scales=[2], ratios=[1.0])
    small = build_adapter(toy.build(model), Normalizer.from_config(toy.whole(model)))
    model = toy.detr_model()
    detr = build_adapter(toy.build(model), Normalizer.from_config(toy.whole(model)))
    shared, pixels = _targets(), toy.images(2)
    for one in (adapter, detr, small):
        loss = one.target_loss(one.encode(pixels), shared)
        assert torch.equal(loss, one.target_loss(one.encode(pixels), _targets()))
    assert set(shared.plan) == {adapter.net, small.net}
    assert set(shared.matching.found) == {detr.net}


def test_layout_loss_touches_no_generator(adapter):
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    memory = adapter.encode(toy.images(2))
    first = adapter.target_loss(memory, _targets())
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    torch.manual_seed(6)
    assert torch.equal(adapter.target_loss(memory, _targets()), first)


def test_layout_loss_falls_where_the_layout_is_shown(adapter):
    """The loss of the network's own detections is below that of other boxes."""
    pixels = toy.images(2)
    memory = adapter.encode(pixels)
    found = adapter.detect(memory)
    own = Targets(boxes=[f.bboxes[:1] for f in found], box_labels=[f.labels[:1] for f in found])
    wrong = Targets(boxes=own.boxes, box_labels=[(label + 1) % 3 for label in own.box_labels])
    low, high = (adapter.target_loss(memory, t).sum() for t in (own, wrong))
    assert low < high


def _sabl():
    model = toy.detector_model()
    model['roi_head']['bbox_head'] = dict(
        type='SABLHead',
        num_classes=3,
        cls_in_channels=16,
        reg_in_channels=16,
        roi_feat_size=3,
        cls_out_channels=16,
        reg_offset_out_channels=16,
        reg_cls_out_channels=16,
        bbox_coder=dict(type='BucketingBBoxCoder', num_buckets=6, scale_factor=1.7),
    )
    return toy.build(model)


def _crowd():
    model = toy.detector_model()
    model['roi_head'].update(type='MultiInstanceRoIHead', num_instance=2)
    model['roi_head']['bbox_head'].update(
        type='MultiInstanceBBoxHead', num_instance=2, num_shared_fcs=1
    )
    return toy.build(model)


def _softmax_rpn():
    model = toy.detector_model()
    model['rpn_head']['loss_cls'] = dict(type='CrossEntropyLoss', use_sigmoid=False)
    return toy.build(model)


def _as(kind):
    """The toy network with another class of RoI head: what matters is how it runs."""
    net = toy.build(toy.detector_model())
    net.roi_head.__class__ = kind
    return net


@pytest.mark.parametrize(
    'make',
    [
        _sabl,
        _crowd,
        _softmax_rpn,
        lambda: _as(GridRoIHead),
        lambda: _as(TridentRoIHead),
    ],
    ids=['sabl', 'crowd', 'softmax', 'grid', 'trident'],
)
def test_what_it_cannot_run_is_refused(make):
    with pytest.raises(TypeError, match=r'No adapter runs a FasterRCNN.*two-stage \(Faster, Mask'):
        build_adapter(make(), Normalizer([0] * 3, [1] * 3, 'rgb'))


SEESAW = dict(type='SeesawLoss', num_classes=3)
CUSTOM = dict(type='CrossEntropyCustomLoss', num_classes=3)


def _scored_by(loss, stage=None):
    """The toy network, or one stage of a toy cascade, with another loss of its class scores."""
    model = toy.detector_model() if stage is None else toy.cascade_model()
    head = model['roi_head']['bbox_head']
    (head if stage is None else head[stage])['loss_cls'] = loss
    return toy.build(model)


@pytest.mark.parametrize('stage', [None, 0, 1])
@pytest.mark.parametrize(
    ('loss', 'name'),
    [
        (SEESAW, 'SeesawLoss'),
        (dict(CUSTOM, use_sigmoid=True), 'CrossEntropyCustomLoss with use_sigmoid=True'),
        (
            dict(type='FocalCustomLoss', use_sigmoid=True, num_classes=3),
            'FocalCustomLoss with use_sigmoid=True',
        ),
    ],
    ids=['seesaw', 'cross-entropy', 'focal'],
)
def test_scores_that_are_no_softmax_with_a_background_are_refused(loss, name, stage):
    net = _scored_by(loss, stage)
    where = '' if stage is None else f' of stage {stage}'
    wanted = rf'^The Shared2FCBBoxHead{where} has {name} as its loss_cls.*use_sigmoid=False'
    with pytest.raises(ValueError, match=wanted):
        build_adapter(net, Normalizer([0] * 3, [1] * 3, 'rgb'))


@torch.no_grad()
@pytest.mark.parametrize(
    'loss',
    [
        dict(CUSTOM, use_sigmoid=False),
        dict(type='CrossEntropyLoss', use_sigmoid=True),
        dict(type='FocalLoss', use_sigmoid=True),
    ],
    ids=['custom', 'cross-entropy', 'focal'],
)
def test_losses_whose_scores_mmdet_reads_by_softmax_are_run(loss):
    net = _scored_by(loss)
    adapter = build_adapter(net, Normalizer.from_config(toy.whole(toy.detector_model())))
    memory = adapter.encode(toy.images(2))
    probe = adapter.propose(memory)
    said = adapter.answer(memory, probe).logits.softmax(-1)
    assert said.shape[1] == 4 and len(said) == len(probe.boxes[0]) + len(probe.boxes[1]) > 0
    # Scores of all classes at every proposal, as mmdet's head gives them without a test_cfg.
    rois = bbox2roi(probe.boxes)
    found = net.roi_head._bbox_forward(memory.feats, rois)
    own = net.roi_head.bbox_head.predict_by_feat(
        (rois,),
        (found['cls_score'],),
        (found['bbox_pred'],),
        [dict(img_shape=(48, 48))],
        rcnn_test_cfg=None,
    )
    torch.testing.assert_close(said, own[0].scores)


def test_what_changes_only_training_is_run():
    for kind in (PISARoIHead, DynamicRoIHead, MaskScoringRoIHead):
        assert TwoStageAdapter.supports(_as(kind))


def test_unknown_networks_are_answered_with_the_families():
    with pytest.raises(TypeError, match=r'No adapter runs a Linear.*classifier.*two-stage'):
        build_adapter(torch.nn.Linear(1, 1), Normalizer([0] * 3, [1] * 3, 'rgb'))
