"""Manifold distillation between networks of timm, as mmpretrain's TIMMBackbone has them."""

import pytest
import torch
import toy
from test_feature_networks import step


def timm_model(name, dims, **settings):
    """A classifier with a small network of timm for 32 px; its head is not asked here."""
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=toy.MEAN, std=toy.STD, to_rgb=True),
        backbone=dict(type='TIMMBackbone', model_name=name, img_size=32, **settings),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=dims),
    )


def swin(dims):
    """Maps [B, 8, 8, dims] and then [B, 4, 4, 2 dims], channels last."""
    return timm_model(
        'swin_tiny_patch4_window7_224',
        2 * dims,
        embed_dim=dims,
        depths=(1, 1),
        num_heads=(2, 2),
        window_size=2,
    )


def cait(dims):
    """Tokens [B, 16, dims]: patches alone, the class token comes after its blocks."""
    return timm_model('cait_xxs24_224', dims, patch_size=8, embed_dim=dims, depth=3, num_heads=2)


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
