"""A DETR student from its teacher: exact where nothing is cut, nearer than chance where it is."""

import copy

import pytest
import torch
import toy
from mmengine.config import Config

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.inheritance import inherit, shrink_config

IMAGES = toy.images(16).double()


def adapter_of(model, seed=0):
    net = toy.build(model, seed).double()
    return build_adapter(net, Normalizer.from_config(toy.whole(model)))


def model_of(kind, layers=2, **changes):
    """With a ViTDet of heads that can be cut."""
    if kind in ('conditional', 'dab'):
        model = copy.deepcopy(_published(kind))
        base = toy.detr_model('detr', layers=layers)
        model.update({k: base[k] for k in ('data_preprocessor', 'backbone')})
        model['neck'].update(in_channels=[32])
    elif kind == 'dino':
        model = copy.deepcopy(_published(kind))
        base = toy.detr_model('deformable', layers=layers)
        model.update({k: base[k] for k in ('data_preprocessor', 'backbone', 'neck')})
        model['num_feature_levels'] = 1
        model['encoder']['layer_cfg']['self_attn_cfg']['num_levels'] = 1
        model['decoder']['layer_cfg']['cross_attn_cfg']['num_levels'] = 1
    else:
        model = toy.detr_model(kind, layers=layers, **changes)
    model['backbone']['arch'].update(head_dims=8)
    return model


def _published(kind):
    model = toy.small_detr(kind)
    model['decoder']['num_layers'] = 3
    return model


def mapper(model):
    """A ChannelMapper in place of the pyramid."""
    width = model['neck']['out_channels']
    neck = dict(
        type='ChannelMapper',
        in_channels=[32],
        kernel_size=1,
        out_channels=width,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=4),
        num_outs=1,
    )
    return dict(model, neck=neck)


def shrunk(model, **shares):
    return shrink_config(Config(toy.whole(model)), **shares).to_dict()


def answers(adapter, images=IMAGES[:2]):
    with torch.no_grad():
        return adapter.own_answers(adapter.encode(images))


@pytest.mark.parametrize(
    ('kind', 'method'),
    [
        ('detr', 'select'),
        ('deformable', 'slice'),
        ('two-stage', 'select'),
        ('dino', 'slice'),
        ('mapper', 'slice'),
    ],
)
def test_nothing_cut_is_exact(kind, method):
    model = model_of('deformable' if kind == 'mapper' else kind)
    model = mapper(model) if kind == 'mapper' else model
    teacher = adapter_of(model)
    student = adapter_of(shrunk(model, width=1, depth=1), seed=5)
    report = inherit(teacher, student, IMAGES, method=method, batch_size=4)
    assert report.agreement['query_class'] == pytest.approx(1)
    assert report.agreement['memory_cosine'] == pytest.approx(1)
    own, wanted = answers(student), answers(teacher)
    torch.testing.assert_close(own.logits, wanted.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(own.boxes, wanted.boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize(('kind', 'method'), [('detr', 'slice'), ('mapper', 'select')])
def test_a_smaller_one_is_nearer_than_a_random_one(kind, method):
    model = model_of('deformable' if kind == 'mapper' else kind, decoder_layers=3, layers=3)
    model = mapper(model) if kind == 'mapper' else model
    teacher = adapter_of(model)
    # Of random weights no decoder layer can be spared.
    small = shrunk(model, width=0.75, depth=0.67, head=0.5, decoder=1)
    assert small['decoder']['num_layers'] == 3 and small['encoder']['num_layers'] == 1
    ffn = small['decoder']['layer_cfg']['ffn_cfg']['feedforward_channels']
    assert ffn == 16 and small['backbone']['arch']['embed_dims'] == 24
    student, chance = adapter_of(small, seed=5), adapter_of(small, seed=6)
    report = inherit(teacher, student, IMAGES, method=method, batch_size=4)
    assert report.parameters < 0.95 and len(report.layers) == 2
    wanted = teacher.observe(IMAGES[:4])
    gaps = []
    for one in (student, chance):
        with torch.no_grad():
            asked = one.answer(one.encode(IMAGES[:4]), wanted.probe).asked
        gaps.append(float((asked.probabilities - wanted.response.asked.probabilities).abs().mean()))
    assert gaps[0] < 0.8 * gaps[1]
    assert torch.equal(teacher.net.query_embedding.weight, student.net.query_embedding.weight)


def test_layers_take_their_branches_along():
    model = model_of('two-stage', decoder_layers=3)
    teacher = adapter_of(model)
    student = adapter_of(shrunk(model, width=1, depth=1, decoder=0.67, head=0.5), seed=5)
    inherit(teacher, student, IMAGES, method='select', batch_size=4)
    heads = [net.net.bbox_head.cls_branches for net in (teacher, student)]
    assert [len(head) for head in heads] == [4, 3]
    kept = [
        next(i for i, other in enumerate(heads[0]) if torch.equal(own.weight, other.weight))
        for own in heads[1]
    ]
    assert kept == sorted(kept) and kept[2] == 3
    layers = [net.net.decoder.layers for net in (teacher, student)]
    for own, number in zip(layers[1], kept[:2], strict=True):
        theirs = layers[0][number]
        assert torch.equal(own.self_attn.attn.in_proj_weight, theirs.self_attn.attn.in_proj_weight)
        # Half of the units, the next layer refitted.
        assert own.ffn.layers[0][0].weight.shape == (16, 256)
        rows = own.ffn.layers[0][0].weight[:, None] == theirs.ffn.layers[0][0].weight
        assert rows.all(-1).any(1).all()


@pytest.mark.parametrize('kind', ['conditional', 'dab'])
def test_the_first_layer_stays_where_it_is_of_its_own_kind(kind):
    model = model_of(kind)
    teacher = adapter_of(model)
    student = adapter_of(shrunk(model, width=1, depth=1, decoder=0.67), seed=5)
    assert len(student.net.decoder.layers) == 2
    for net in (teacher.net, student.net):
        # mmdet's sines are of single precision.
        net.float()
    inherit(teacher, student, IMAGES.float(), method='select', batch_size=4)
    first = [net.net.decoder.layers[0].cross_attn.qpos_proj.weight for net in (teacher, student)]
    assert torch.equal(*first)


def test_channels_between_the_necks_convolutions_that_nothing_fills_cost_nothing():
    # The first one reads 16 channels: with the mean, 17 directions hold all that it writes.
    model = model_of('deformable')
    cfg = shrunk(model, width=1, depth=1, neck=0.75)
    assert cfg['neck']['lateral_channels'] == 24
    teacher, student = adapter_of(model), adapter_of(cfg, seed=5)
    assert student.net.neck.fpn_convs[0].conv.weight.shape == (32, 24, 3, 3)
    inherit(teacher, student, IMAGES, batch_size=4)
    theirs, ours = answers(teacher), answers(student)
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-6)
    assert torch.allclose(ours.boxes, theirs.boxes, atol=1e-6)


def test_what_cannot_be_inherited_is_said():
    model = model_of('deformable')
    teacher = adapter_of(model)
    with pytest.raises(ValueError, match='leave neck out'):
        shrunk(mapper(model), neck=0.5)
    thin = adapter_of(dict(model, neck=dict(model['neck'], lateral_channels=16)))
    with pytest.raises(ValueError, match='lateral_channels=32, the teacher'):
        inherit(thin, teacher, IMAGES, batch_size=4)
    narrow = adapter_of(model_of('deformable', width=16))
    with pytest.raises(ValueError, match='equal width'):
        inherit(teacher, narrow, IMAGES)
    with pytest.raises(ValueError, match='own kind'):
        inherit(teacher, adapter_of(model_of('detr')), IMAGES)
    more = adapter_of(model_of('deformable', queries=20))
    with pytest.raises(ValueError, match='query_embedding'):
        inherit(teacher, more, IMAGES, batch_size=4)
