"""Small networks of timm for 32 px, as mmpretrain wraps them."""

import toy

PREPROCESSOR = dict(mean=toy.MEAN, std=toy.STD, to_rgb=True)


def backbone_model(name, dims, **settings):
    """A classifier of mmpretrain whose backbone is of timm; its head is not asked here."""
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(PREPROCESSOR),
        backbone=dict(type='TIMMBackbone', model_name=name, img_size=32, **settings),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=dims),
    )


def whole_model(name, dims, **settings):
    """A network of timm with its own head, of 5 classes."""
    return dict(
        type='TimmClassifier',
        data_preprocessor=dict(PREPROCESSOR),
        model_name=name,
        num_classes=5,
        img_size=32,
        **settings,
    )


def swin(dims, model=backbone_model):
    """Maps [B, 8, 8, dims] and then [B, 4, 4, 2 dims], channels last."""
    return model(
        'swin_tiny_patch4_window7_224',
        2 * dims,
        embed_dim=dims,
        depths=(1, 1),
        num_heads=(2, 2),
        window_size=2,
    )


def cait(dims, model=backbone_model):
    """Tokens [B, 16, dims]: patches alone, the class token comes after its blocks."""
    return model('cait_xxs24_224', dims, patch_size=8, embed_dim=dims, depth=3, num_heads=2)
