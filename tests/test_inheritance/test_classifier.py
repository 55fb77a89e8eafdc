import json

import pytest
import torch
from networks import build, classifier_config, smooth_images

from mmdfkd.adapters import Normalizer
from mmdfkd.inheritance import inherit, recipe_of, shrink_config
from mmdfkd.inheritance.families import build_heir
from mmdfkd.inheritance.streams import RotationMap, zero_sum_basis
from mmdfkd.inheritance.transformer import inherit_backbone

IMAGES = smooth_images(64, 32)
FAMILIES = [
    {},
    dict(type='DistilledVisionTransformer', layer_scale_init_value=0.5),
    dict(out_type='avg_featmap', final_norm=False, with_cls_token=False, qkv_bias=False),
]


def logits(adapter, images=IMAGES):
    with torch.no_grad():
        return adapter.answer(adapter.encode(images), None).logits


def student_of(cfg, seed=7, **shares):
    return build(cfg, shrink_config(cfg, **shares), seed=seed)


@pytest.mark.parametrize('method', ['slice', 'select'])
@pytest.mark.parametrize('backbone', FAMILIES)
def test_exact_when_nothing_is_cut(method, backbone):
    cfg = classifier_config(**backbone)
    teacher, student = build(cfg), student_of(cfg, width=1, depth=1)
    assert (logits(teacher) - logits(student)).abs().max() > 0.1
    report = inherit(teacher, student, IMAGES, method)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=1e-5)
    assert report.agreement['top1'] == 1 and report.agreement['kl'] < 1e-9
    assert report.parameters == 1 and report.layers == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('backbone', FAMILIES)
def test_exact_under_a_full_rotation(backbone):
    cfg = classifier_config(**backbone)
    teacher, student = build(cfg), student_of(cfg, width=1, depth=1)
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(31, 31).double()).Q
    heir = build_heir(teacher, student)
    batches = [teacher.normalizer(b) for b in IMAGES.split(8)]
    with torch.no_grad():
        plan = inherit_backbone(
            *heir.views,
            (batches, batches),
            recipe_of('slice'),
            heir.readout,
            heir.distance,
            stream=RotationMap(zero_sum_basis(32) @ turn),
        )
        heir.finish(plan, recipe_of('slice'), IMAGES.split(8))
    weights = [a.net.state_dict()['backbone.layers.0.attn.qkv.weight'] for a in (teacher, student)]
    assert (weights[0] - weights[1]).abs().max() > 0.1
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=1e-5)


def low_rank(adapter, rank):
    """Confine the stream to ``rank`` zero-sum directions and the token mean."""
    net = adapter.net.backbone
    torch.manual_seed(3)
    keep = torch.linalg.qr(
        zero_sum_basis(net.embed_dims) @ torch.randn(net.embed_dims - 1, rank).double()
    ).Q
    keep = keep @ keep.t() + 1 / net.embed_dims
    with torch.no_grad():
        conv = net.patch_embed.projection
        conv.weight.copy_((keep @ conv.weight.flatten(1)).view_as(conv.weight))
        conv.bias.copy_(keep @ conv.bias)
        for table in (net.cls_token, net.pos_embed):
            table.copy_(table @ keep)
        for layer in net.layers:
            for linear in (layer.attn.proj, layer.ffn.layers[1]):
                linear.weight.copy_(keep @ linear.weight)
                linear.bias.copy_(keep @ linear.bias)


def test_slice_beats_select_on_a_low_rank_stream():
    cfg = classifier_config()
    teacher = build(cfg)
    low_rank(teacher, 15)
    reports, errors = {}, {}
    for method in ('slice', 'select'):
        student = build(cfg, shrink_config(cfg, 0.5, 1, mlp=1), seed=7)
        reports[method] = inherit(teacher, student, IMAGES, method)
        errors[method] = float((logits(student) - logits(teacher)).square().mean())
    assert reports['slice'].stream_energy == pytest.approx(1)
    assert reports['select'].stream_energy < 0.8
    assert errors['slice'] < 0.4 * errors['select']
    assert reports['slice'].agreement['kl'] < reports['select'].agreement['kl']


def test_report():
    cfg = classifier_config()
    teacher, student = (
        build(cfg, double=False),
        build(cfg, shrink_config(cfg), seed=7, double=False),
    )
    student.net.train()
    report = inherit(teacher, student, IMAGES.float())
    assert student.net.training and not teacher.net.training
    assert report.method == 'slice' and report.images == 56
    assert len(report.layers) == 3 and [len(h) for h in report.heads] == [3, 3, 3]
    assert 0.5 < report.stream_energy < 1 and 0.2 < report.parameters < 0.6 and report.seconds > 0
    assert set(report.agreement) == {'top1', 'kl'} and report.pyramid_energy is None
    assert report.maps['stream'].shape == (32, 24)
    values = json.loads(json.dumps(report.to_dict()))
    assert 'maps' not in values and values['layers'] == report.layers
    assert "'slice'" in str(report) and 'top1' in str(report)


def test_float32_and_the_same_images_give_the_same_student():
    cfg = classifier_config()
    teacher = build(cfg, double=False)
    outputs = []
    for seed in (7, 8):
        student = build(cfg, shrink_config(cfg), seed=seed, double=False)
        inherit(teacher, student, IMAGES.float())
        outputs.append(logits(student, IMAGES.float()))
    # Not a trace of the random start is left.
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_errors():
    cfg = classifier_config()
    teacher = build(cfg)

    def refused(match, model=None, images=IMAGES, method='slice', change=None):
        student = build(cfg, model or shrink_config(cfg))
        if change:
            change(student)
        before = {k: v.clone() for k, v in student.net.state_dict().items()}
        with pytest.raises(ValueError, match=match):
            inherit(teacher, student, images, method)
        assert all(torch.equal(before[k], v) for k, v in student.net.state_dict().items())

    model = shrink_config(cfg)
    model.backbone.arch.num_heads = 2
    refused('heads are 12 channels wide', model)
    model = shrink_config(cfg)
    model.backbone.img_size = 64
    refused('pos_embed', model)
    model = shrink_config(cfg)
    model.head.num_classes = 5
    refused('6 classes, the student 5', model)
    model = shrink_config(cfg)
    model.backbone.arch.feedforward_channels = 96
    refused("feedforward_channels is 96, more than the teacher's 64", model)
    refused('no method', method='slyce')
    refused('at least 8', images=IMAGES[:3])

    def other_order(student):
        student.normalizer = Normalizer([0.0] * 3, [1.0] * 3, 'rgb')

    refused('data_preprocessor', change=other_order)
    model = shrink_config(classifier_config(type='DistilledVisionTransformer'))
    refused('its own kind only', model)
