"""Heads of the feature and attention families between real networks, as the student runs them."""

import pytest
import torch
import toy

from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.registry import MODELS

BLOCKS, QKV = ['backbone.layers.1'], ['backbone.layers.1.attn.qkv']
CLASSIFIER_HEADS = [
    dict(type='mmdfkd.ProbeHead', taps_student=BLOCKS),
    dict(type='mmdfkd.AttentionHead', taps_student=QKV),
    dict(type='mmdfkd.AttentionHead', taps_student=QKV, mode='head_ssim', rows='all', name='ssim'),
    dict(type='mmdfkd.GenerationHead', taps_student=BLOCKS),
    dict(type='mmdfkd.TargetAwareHead', taps_student=BLOCKS),
    dict(type='mmdfkd.ChannelWiseHead', taps_student=BLOCKS),
    dict(type='mmdfkd.SimRegHead'),
    dict(type='mmdfkd.NoiseAdaptedHead', num_classes=5, accuracy=0.9),
]
WINDOWED = dict(prefix_tokens=0, channels_last=True)
DETECTOR_HEADS = [
    dict(type='mmdfkd.ProbeHead', taps_student=['backbone.blocks.1'], **WINDOWED),
    dict(
        type='mmdfkd.AttentionHead',
        taps_student=['backbone.blocks.0.attn.qkv'],
        rows='mean',
        **WINDOWED,
    ),
    dict(type='mmdfkd.GenerationHead', target='all', levels=(0, 1)),
    dict(type='mmdfkd.ChannelWiseHead', levels=(0, 1, 2)),
]


def step(model, teacher_model, heads, scope, size):
    """One step of a student as the distiller runs it: its losses and what has no gradient."""
    normalizer = Normalizer.from_config(toy.whole(model, scope))
    teacher = build_adapter(toy.build(teacher_model, scope=scope), normalizer)
    heads = [MODELS.build(head) for head in heads]
    student = Student(toy.build(model, seed=1, scope=scope), normalizer, heads)
    student.build_aligners(teacher, (size, size))
    frozen = student.freeze_unused(teacher, (size, size))
    images = toy.images(2, size)
    needs = student.active_needs
    seen = teacher.observe(images, needs.taps_teacher, needs.teacher_response)
    losses = student(images, seen, Targets())
    sum(losses.values()).backward()
    idle = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert not any(p.grad is not None for p in teacher.net.parameters())
    return losses, idle, frozen


@pytest.mark.parametrize(
    ('scope', 'heads'), [('mmpretrain', CLASSIFIER_HEADS), ('mmdet', DETECTOR_HEADS)]
)
def test_every_head_between_networks_of_unlike_width(scope, heads):
    torch.manual_seed(0)
    if scope == 'mmpretrain':
        models = toy.classifier_model(dims=16), toy.classifier_model(dims=24)
    else:
        models = toy.detector_model(dims=32), toy.detector_model(dims=48)
    losses, idle, _ = step(*models, heads, scope, 32 if scope == 'mmpretrain' else 48)
    assert len(losses) == len(heads)
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())
    assert idle == []


def test_simkd_is_a_lift_before_the_teachers_classifier():
    """Only the feature before it is compared, so the classifier is kept."""
    torch.manual_seed(0)
    student, teacher = toy.classifier_model(dims=16), toy.classifier_model(dims=24)
    student['neck'] = dict(type='mmdfkd.Lift', in_channels=16, out_channels=24)
    student['head'] = teacher['head']
    heads = [dict(type='mmdfkd.FeatureHead', align='never')]
    losses, idle, frozen = step(student, teacher, heads, 'mmpretrain', 32)
    assert losses['loss_feature'] > 0
    assert idle == []
    assert frozen == ['head']


def test_wide_last_classifies_tokens():
    student = toy.classifier_model(dims=16, layers=1)
    student['backbone'].update(out_type='raw', final_norm=False)
    student['neck'] = dict(type='mmdfkd.WideLast', in_channels=16, out_channels=24, num_heads=2)
    student['head'] = toy.classifier_model(dims=24)['head']
    heads = [dict(type='mmdfkd.FeatureHead', align='never'), dict(type='mmdfkd.LogitHead')]
    _, idle, frozen = step(student, toy.classifier_model(dims=24), heads, 'mmpretrain', 32)
    assert idle == []
    assert frozen == []
