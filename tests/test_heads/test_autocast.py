"""Every head of classifiers in one training step under bfloat16 autocast."""

import pytest
import torch
import toy

from mmdfkd import heads as package
from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.heads import DistillHead
from mmdfkd.registry import MODELS

DETECTORS_ONLY = {
    'BoxResponseHead', 'CrossKDHead', 'DenseResponseHead', 'EncoderMemoryHead', 'FGDHead',
    'HungarianQueryHead', 'MaskResponseHead', 'PseudoLabelHead', 'PyramidHead', 'QueryAlignedHead',
    'QueryPriorHead', 'RPNResponseHead', 'RoIResponseHead', 'StudentQueryHead',
}  # fmt: skip
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
    assert {case[-1]['type'] for case in CASES} == known - DETECTORS_ONLY


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
    assert found and all(v.dtype == torch.float32 and torch.isfinite(v) for v in found.values())
    sum(found.values()).backward()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert any(g.any() for g in grads) and all(torch.isfinite(g).all() for g in grads)
    assert not any(p.grad is not None for p in teacher.net.parameters())
