"""Heads between networks of timm, as mmpretrain's TIMMBackbone has them."""

import pytest
import torch
import toy
from test_feature_networks import step
from timm_nets import backbone_model, cait, swin

from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.registry import MODELS


def vit():
    """Tokens [B, 1 + 16, 16]: a class token before the patches."""
    return toy.classifier_model(dims=16)


BLOCKS = 'backbone.timm_model.blocks'
STAGES = 'backbone.timm_model.layers'
CASES = {
    'cait-vit': (
        vit(),
        cait(24),
        dict(
            taps_student=['backbone.layers.0', 'backbone.layers.1'],
            taps_teacher=[f'{BLOCKS}.0', f'{BLOCKS}.2'],
            prefix_tokens=(1, 0),
        ),
    ),
    'swin-vit': (
        vit(),
        swin(24),
        dict(
            taps_student=['backbone.layers.0', 'backbone.layers.1'],
            taps_teacher=[f'{STAGES}.0.blocks.0', f'{STAGES}.1.blocks.0'],
            prefix_tokens=(1, 0),
            channels_last=True,
            merge=4,
        ),
    ),
    'swin-swin': (
        swin(16),
        swin(24),
        dict(
            taps_student=[f'{STAGES}.0.blocks.0', f'{STAGES}.1.blocks.0'],
            prefix_tokens=0,
            channels_last=True,
            merge=2,
        ),
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_manifold(name):
    """Explicit prefix tokens, unequal grids merged, one step of the student's own class."""
    torch.manual_seed(0)
    student, teacher, settings = CASES[name]
    heads = [dict(type='mmdfkd.ManifoldHead', num_samples=20, **settings)]
    losses, idle, frozen = step(student, teacher, heads, 'mmpretrain', 32)
    assert set(losses) == {'loss_manifold_intra', 'loss_manifold_inter', 'loss_manifold_random'}
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())
    assert idle == []
    # No answer is compared: the classifier is kept.
    assert 'head' in frozen


def test_a_class_token_taken_for_a_patch_is_refused():
    """CaiT's blocks see patches alone: 17 tokens of a ViT are no grid without its prefix."""
    student, teacher, settings = CASES['cait-vit']
    heads = [dict(type='mmdfkd.ManifoldHead', **dict(settings, prefix_tokens=0))]
    with pytest.raises(ValueError, match=r'17 tokens.*prefix_tokens=\(student, teacher\)'):
        step(student, teacher, heads, 'mmpretrain', 32)


def timm_vit(**settings):
    return backbone_model(
        'vit_tiny_patch16_224', 24, patch_size=8, embed_dim=24, depth=2, num_heads=2, **settings
    )


def mini_vit():
    model = vit()
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    model['backbone'] = dict(type='mmdfkd.MiniViT', arch=arch, img_size=32, patch_size=8)
    return model


ATTENTION = dict(
    type='mmdfkd.AttentionHead', rows='mean', taps_student=['backbone.layers.0.attn.qkv']
)


@pytest.mark.parametrize('num_heads', [None, (2, 2)])
@pytest.mark.parametrize(
    ('teacher', 'tap', 'prefix', 'message'),
    [
        (cait(24), f'{BLOCKS}.0.attn.qkv', (1, 0), r'TalkingHeadAttn\) mixes.* proj_l and proj_w'),
        (timm_vit(qk_norm=True), f'{BLOCKS}.1.attn.qkv', 1, 'normalises.* q_norm and k_norm'),
        (mini_vit(), 'backbone.layers.1.qkv', 1, r'MiniLayer\) mixes.* mix_logits and mix_att'),
    ],
    ids=['cait', 'qk_norm', 'mini_vit'],
)
def test_attention_of_another_form_is_refused(teacher, tap, prefix, message, num_heads):
    """What softmax(q k' / sqrt(d)) does not give is no row to compare; relations of qkv are."""
    pair = dict(taps_teacher=[tap], prefix_tokens=prefix)
    with pytest.raises(ValueError, match=f"'{tap}' of the teacher .*{message}"):
        heads = [dict(ATTENTION, num_heads=num_heads, **pair)]
        step(vit(), teacher, heads, 'mmpretrain', 32)
    heads = [dict(type='mmdfkd.QKVRelationHead', taps_student=ATTENTION['taps_student'], **pair)]
    losses, _, _ = step(vit(), teacher, heads, 'mmpretrain', 32)
    assert torch.isfinite(losses['loss_qkv'])


def test_attention_without_norms_is_compared():
    """An Identity in a norm's place is none."""
    heads = [dict(ATTENTION, taps_teacher=[f'{BLOCKS}.1.attn.qkv'])]
    losses, _, _ = step(vit(), timm_vit(), heads, 'mmpretrain', 32)
    assert torch.isfinite(losses['loss_attention']) and losses['loss_attention'] > 0


def test_a_student_of_another_attention_and_a_cross_architecture_teacher_are_refused():
    heads = [dict(ATTENTION, taps_student=['backbone.layers.0.qkv'])]
    with pytest.raises(ValueError, match=r'of the student \(MiniLayer\)'):
        step(mini_vit(), vit(), heads, 'mmpretrain', 32)
    cnn = vit()
    cnn['backbone'] = dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4)
    cnn['neck'] = dict(type='GlobalAveragePooling')
    cnn['head']['in_channels'] = 32
    head = dict(
        type='mmdfkd.CrossArchitectureHead',
        tap_student='backbone.layer4',
        tap_teacher=f'{BLOCKS}.1',
        prefix_tokens=0,
    )
    with pytest.raises(ValueError, match=r'of the teacher \(TalkingHeadAttn\)'):
        step(cnn, cait(24), [head], 'mmpretrain', 32)


def test_maps_finer_than_they_are_wide():
    """At 96 px Swin's first maps are 24 x 24 x 16: only ``channels_last`` tells what is what."""
    torch.manual_seed(0)
    models = swin(16), swin(8)
    for model in models:
        model['backbone']['img_size'] = 96
    normalizer = Normalizer.from_config(toy.whole(models[0], 'mmpretrain'))
    tap = f'{STAGES}.0.blocks.0'
    head = MODELS.build(dict(type='mmdfkd.FeatureHead', taps_student=[tap], channels_last=True))
    nets = [toy.build(model, i, 'mmpretrain') for i, model in enumerate(models)]
    student = Student(nets[0], normalizer, [head])
    teacher = build_adapter(nets[1], normalizer)
    student.build_aligners(teacher, (96, 96))
    assert head.widths == ((16,), (8,))
    images = toy.images(2, 96)
    seen = teacher.observe(images, [tap])
    loss = student(images, seen, Targets())['loss_feature']
    mine = student.adapter.encode(images, [tap]).taps[tap].double()
    theirs = seen.memory.taps[tap].double()
    assert mine.shape == (2, 24, 24, 16)
    (linear,) = (m.double() for m in head.aligners.modules() if isinstance(m, torch.nn.Linear))
    error = mine @ linear.weight.T + linear.bias - theirs
    expected = error.pow(2).mean() / theirs.pow(2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_channels_last_of_one_network_alone():
    """Swin's maps beside a ResNet's, both finer than they are wide."""
    torch.manual_seed(0)
    own = swin(16)
    own['backbone']['img_size'] = 96
    other = toy.classifier_model()
    other['backbone'] = dict(type='ResNet', depth=18, stem_channels=8, base_channels=8)
    other['neck'] = dict(type='GlobalAveragePooling')
    other['head'] = dict(type='LinearClsHead', num_classes=5, in_channels=64)
    normalizer = Normalizer.from_config(toy.whole(own, 'mmpretrain'))
    head = MODELS.build(
        dict(
            type='mmdfkd.FeatureHead',
            taps_student=[f'{STAGES}.0.blocks.0'],
            taps_teacher=['backbone.layer1'],
            channels_last=[True, False],
            align='always',
        )
    )
    teacher = build_adapter(toy.build(other, 1, 'mmpretrain'), normalizer)
    student = Student(toy.build(own, 0, 'mmpretrain'), normalizer, [head])
    student.build_aligners(teacher, (96, 96))
    assert head.widths == ((16,), (8,))
    images = toy.images(2, 96)
    seen = teacher.observe(images, head.needs.taps_teacher)
    loss = student(images, seen, Targets())['loss_feature']
    mine = student.adapter.encode(images, head.needs.taps_student).taps[head.needs.taps_student[0]]
    theirs = seen.memory.taps['backbone.layer1'].double().permute(0, 2, 3, 1)
    assert mine.shape == (2, 24, 24, 16) and theirs.shape == (2, 24, 24, 8)
    (linear,) = (m.double() for m in head.aligners.modules() if isinstance(m, torch.nn.Linear))
    error = mine.double() @ linear.weight.T + linear.bias - theirs
    expected = error.pow(2).mean() / theirs.pow(2).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
