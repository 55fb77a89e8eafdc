"""Every head in one training step under bfloat16 autocast, as runs with AmpOptimWrapper take it."""

from functools import cache, partial

import pytest
import torch
import toy
from mmcv.ops import RoIAlign
from test_query_heads import TRAIN

from mmdfkd import heads as package
from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.heads import DistillHead
from mmdfkd.registry import MODELS

BLOCK = dict(taps_student=['backbone.layers.0', 'backbone.layers.1'])
QKV = dict(taps_student=['backbone.layers.1.attn.qkv'])


def vit(dims=16, **backbone):
    model = toy.classifier_model(dims=dims)
    model['backbone'].update(backbone)
    return model


def distilled():
    model = vit(type='DistilledVisionTransformer')
    model['head']['type'] = 'DeiTClsHead'
    return model


def slimmed():
    return vit(dims=24, type='mmdfkd.SlimmedViT', slim_before=(1,))


def cnn():
    model = toy.classifier_model()
    model['backbone'] = dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4)
    model['neck'] = dict(type='GlobalAveragePooling')
    model['head'] = dict(type='LinearClsHead', num_classes=5, in_channels=32)
    return model


# Name, student, teacher, settings. Teachers are wider than students where heads allow it.
CASES = [
    *(
        (f'logits {name}', vit(), vit(24), dict(type='LogitHead', ce_weight=0.5, **settings))
        for name, settings in {
            'kl': {},
            'standardized': dict(standardize=True),
            **{kind: dict(loss=kind) for kind in ('hard', 'dkd', 'nkd', 'dist')},
            'top_k': dict(loss=dict(type='top_k', k=3)),
        }.items()
    ),
    ('token hard', distilled(), vit(24), dict(type='DistillationTokenHead')),
    ('token soft', distilled(), vit(24), dict(type='DistillationTokenHead', mode='soft')),
    ('co-advise', distilled(), vit(24), dict(type='CoAdviseHead')),
    ('noise', vit(), vit(24), dict(type='NoiseAdaptedHead', num_classes=5, accuracy=0.9)),
    ('features', vit(), vit(24), dict(type='FeatureHead', **BLOCK)),
    ('features cosine', vit(), vit(24), dict(type='FeatureHead', loss='cosine', **BLOCK)),
    ('features mlp', vit(), vit(24), dict(type='FeatureHead', align='mlp', **BLOCK)),
    ('channel map', vit(), vit(24), dict(type='ChannelMapHead', **BLOCK)),
    ('block', vit(), vit(24), dict(type='BlockHead')),
    ('vitkd', vit(), vit(24), dict(type='GenerationHead', **BLOCK)),
    ('mgd', vit(), vit(24), dict(type='GenerationHead', target='all', **BLOCK)),
    ('cwd', vit(), vit(24), dict(type='ChannelWiseHead', standardize=True, **BLOCK)),
    ('target-aware', vit(), vit(24), dict(type='TargetAwareHead', **BLOCK)),
    ('simreg', vit(), vit(24), dict(type='SimRegHead')),
    (
        'cross-architecture',
        cnn(),
        vit(24),
        dict(
            type='CrossArchitectureHead',
            tap_student='backbone.layer3',
            tap_teacher='backbone.layers.1',
            adversary_weight=1.0,
        ),
    ),
    (
        'early features',
        vit(),
        cnn(),
        dict(
            type='EarlyFeatureHead',
            taps_student=['backbone.layers.0'],
            taps_teacher=['backbone.layer2'],
            prefix_tokens=(1, 0),
        ),
    ),
    ('recalibration', slimmed(), vit(24), dict(type='RecalibrationHead')),
    ('manifold', vit(), vit(24), dict(type='ManifoldHead', num_samples=20, **BLOCK)),
    ('qkv', vit(), vit(24), dict(type='QKVRelationHead', **QKV)),
    ('similarity', vit(), vit(24), dict(type='SelfSimilarityHead', **BLOCK)),
    ('rkd', vit(), vit(24), dict(type='RKDHead', **BLOCK)),
    ('probe', vit(), vit(24), dict(type='ProbeHead', **BLOCK)),
    *(
        (f'attention {mode}', vit(), vit(24), dict(type='AttentionHead', mode=mode, **QKV))
        for mode in ('mse', 'kl', 'head_ssim', 'head_kl')
    ),
]


def test_no_head_is_left_out():
    known = {name for name in package.__all__ if name.endswith('Head')} - {'DistillHead'}
    assert all(issubclass(getattr(package, name), DistillHead) for name in known)
    heads = [case[-1] for case in CASES] + [head for heads in DETECTORS.values() for head in heads]
    assert {head['type'] for head in heads} == known


@pytest.mark.parametrize(
    ('model', 'teacher_model', 'head'), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_step_stays_finite(model, teacher_model, head):
    torch.manual_seed(0)
    normalizer = Normalizer.from_config(toy.whole(model, 'mmpretrain'))
    teacher = build_adapter(toy.build(teacher_model, scope='mmpretrain'), normalizer)
    head = MODELS.build(dict(head, type=f'mmdfkd.{head["type"]}'))
    student = Student(toy.build(model, seed=1, scope='mmpretrain'), normalizer, [head])
    student.build_aligners(teacher, (32, 32))
    images, needs = toy.images(4, 32), student.active_needs
    with torch.autocast('cpu', torch.bfloat16):
        seen = teacher.observe(images, needs.taps_teacher, needs.teacher_response)
        if needs.extra_teachers:
            seen.others = (teacher.observe(images, (), True),)
        found = student(images, seen, Targets())
    assert_finite_step(found, student, teacher)


def assert_finite_step(found, student, teacher):
    """Losses in single precision, and gradients of the student's, all of them finite."""
    assert found and all(v.dtype == torch.float32 and torch.isfinite(v) for v in found.values())
    sum(found.values()).backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert any(g.any() for g in grads)
    assert all(torch.isfinite(g).all() for g in grads)
    assert not any(p.grad is not None for p in teacher.net.parameters())


# Detectors ---------------------------------------------------------------------------------------

# At 64 the last level of a pyramid is a convolution with stride of a single position, for which
# PyTorch's CPU kernel in bfloat16 returns now and then a gradient of memory it never wrote.
ONE_STAGE_SIDE = 128
PSEUDO = dict(type='PseudoLabelHead', threshold=0.2)
FGD = dict(type='FGDHead', threshold=0.2)
QUERIES = [
    dict(type='EncoderMemoryHead'),
    dict(type='QueryAlignedHead'),
    dict(type='StudentQueryHead'),
    dict(type='HungarianQueryHead', matching='each'),
    dict(type='QueryPriorHead', threshold=0.2),
    PSEUDO,
]
REGIONS = [
    dict(type='RPNResponseHead'),
    dict(type='RoIResponseHead'),
    dict(type='MaskResponseHead'),
    PSEUDO,
]
# Heads by the kind of both networks.
DETECTORS = {
    'mask': [dict(type='PyramidHead'), dict(type='PyramidHead', mode='pkd'), *REGIONS],
    'cascade': [*REGIONS, dict(type='BoxResponseHead'), FGD],
    'two-stage': [*QUERIES, dict(type='RPNResponseHead'), dict(type='BoxResponseHead')],
    'detr': QUERIES,
    'dino': [PSEUDO, dict(type='StudentQueryHead')],
    'gfl': [dict(type='DenseResponseHead'), dict(type='CrossKDHead', convs=1), FGD, PSEUDO],
    'fcos': [dict(type='DenseResponseHead'), dict(type='CrossKDHead', convs=1)],
    'rtmdet': [dict(type='DenseResponseHead'), dict(type='BoxResponseHead'), PSEUDO],
}


def detector(kind):
    if kind == 'mask':
        return dict(toy.detector_model(mask=True), train_cfg=TRAIN)
    if kind == 'cascade':
        proposals = dict(TRAIN['rpn_proposal'], min_bbox_size=0)
        return dict(
            toy.cascade_model(),
            train_cfg=dict(TRAIN, rpn_proposal=proposals, rcnn=[TRAIN['rcnn']] * 2),
        )
    if kind in toy.ONE_STAGE:
        return toy.one_stage_model(kind)
    return toy.small_detr(kind) if kind == 'dino' else toy.detr_model(kind)


def network(kind, seed):
    net = toy.build(detector(kind), seed)
    for module in net.modules():
        if isinstance(module, RoIAlign):
            # On a CPU mmcv's has no bfloat16.
            module.forward = partial(aligned, module.forward)
    return net


def aligned(forward, maps, rois):
    return forward(maps.float(), rois.float()).to(maps.dtype)


@cache
def detecting(kind):
    """A teacher, images, and what it says about them."""
    net = network(kind, 0).requires_grad_(False)
    teacher = build_adapter(net, Normalizer.from_config(toy.whole(detector(kind))))
    pixels = toy.images(2, ONE_STAGE_SIDE if kind in toy.ONE_STAGE else toy.SIZE)
    with torch.autocast('cpu', torch.bfloat16):
        return teacher, pixels, teacher.observe(pixels, fresh=True, serials=[3, 4])


@pytest.mark.parametrize(
    ('kind', 'head'),
    [(kind, head) for kind, heads in DETECTORS.items() for head in heads],
    ids=lambda x: x if isinstance(x, str) else x['type'],
)
def test_a_detectors_step_stays_finite(kind, head):
    teacher, pixels, seen = detecting(kind)
    head = MODELS.build(dict(head, type=f'mmdfkd.{head["type"]}'))
    student = Student(network(kind, 1), teacher.normalizer, [head])
    student.build_aligners(teacher, pixels.shape[-2:])
    with torch.autocast('cpu', torch.bfloat16):
        found = student.train()(pixels, seen, Targets())
    assert_finite_step(found, student, teacher)
