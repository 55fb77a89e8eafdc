"""Heads of the feature and attention families between real networks, as the student runs them."""

import pytest
import torch
import toy

from mmdfkd.adapters import Normalizer, Observation, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.heads import AttentionHead
from mmdfkd.inheritance import inherit
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
    *(
        dict(type=f'mmdfkd.{kind}', taps_student=['backbone.blocks.1'], **WINDOWED)
        for kind in (
            'FeatureHead',
            'SelfSimilarityHead',
            'RKDHead',
            'TargetAwareHead',
            'SimRegHead',
        )
    ),
]


def step(model, teacher_model, heads, scope, size):
    """One step of a student as the distiller runs it: its losses and what has no gradient."""
    normalizer = Normalizer.from_config(toy.whole(model, scope))
    teacher = build_adapter(toy.build(teacher_model, scope=scope), normalizer)
    heads = [MODELS.build(head) for head in heads]
    student = Student(toy.build(model, seed=1, scope=scope), normalizer, heads)
    student.build_aligners(teacher, (size, size))
    frozen = student.freeze_unused(teacher, (size, size))
    # Angles take three images.
    images = toy.images(3, size)
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
    # RKD has two.
    assert len(losses) == len(heads) + any('RKD' in head['type'] for head in heads)
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


# --- head by head, where heads were cut -----------------------------------------------------------


def cut_heads(taps, **options):
    """Two of a ViTDet's four heads of its whole width, not yet inherited; and a head of them."""
    models = [toy.detector_model(), toy.detector_model()]
    for model, heads in zip(models, (2, 4), strict=True):
        model['backbone']['arch'].update(num_heads=heads, head_dims=8)
    normalizer = Normalizer.from_config(toy.whole(models[0]))
    student, teacher = (build_adapter(toy.build(model, seed=2), normalizer) for model in models)
    taps = [f'backbone.blocks.{i}.attn.qkv' for i in taps]
    head = AttentionHead(taps_student=taps, rows='mean', **WINDOWED, **options)
    head.bind(student.net, teacher.net)
    head.build_aligners(*(dict.fromkeys(taps, 1) | {'neck': [1]} for _ in range(2)))
    return student, teacher, head


@pytest.mark.parametrize('mode', ['head_ssim', 'head_kl'])
def test_an_inherited_students_heads_are_compared_with_those_it_kept(mode):
    """The first block reads uncut tokens: the heads that it kept attend as their originals do."""
    student, teacher, head = cut_heads((0,), mode=mode)
    images = toy.images(16)
    report = inherit(teacher, student, images, method='select', units='activation')
    assert report.heads[0] != [0, 1]
    tap = head.needs.taps_student
    with torch.no_grad():
        sides = [Observation(net.encode(images[:2], tap)) for net in (student, teacher)]
        before = head(*sides, Targets(), images[:2])['loss_attention']
        head.start_from(report)
        head.fit_aligners(*sides)
        after = head(*sides, Targets(), images[:2])['loss_attention']
    assert head.kept0.tolist() == report.heads[0]
    assert after < 1e-6 < 1e-3 < before
    # A resumed run is told nothing: it is in the file.
    resumed = cut_heads((0,), mode=mode)[2]
    resumed.load_state_dict(head.state_dict())
    assert resumed(*sides, Targets(), images[:2])['loss_attention'] == after


def test_heads_that_were_cut_have_counterparts_only_where_the_block_was_made_from():
    student, teacher, head = cut_heads((0, 1), mode='head_kl')
    with pytest.raises(ValueError, match='has to be inherited'):
        head.fit_aligners(None, None)
    report = inherit(teacher, student, toy.images(16), method='select')
    report.layers = [0, 2]
    with pytest.raises(ValueError, match=r"'backbone.blocks.1.attn.qkv' was made from .* block 2"):
        head.start_from(report)
    turned = AttentionHead(
        taps_student=head.needs.taps_student, mode='head_kl', rows='mean', **WINDOWED
    )
    with pytest.raises(ValueError, match="4 heads .* among the teacher's 2"):
        turned.bind(teacher.net, student.net)
    # The mean over heads asks nothing of their numbers.
    mean = AttentionHead(taps_student=['backbone.blocks.1.attn.qkv'], rows='mean', **WINDOWED)
    mean.bind(teacher.net, student.net)
    mean.fit_aligners(None, None)
