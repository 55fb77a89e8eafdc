"""Small real teachers that priors tell apart."""

import torch
from torch import nn

from mmdfkd.adapters import Adapter, Normalizer, build_adapter

HEAD = dict(type='LinearClsHead', num_classes=5)
POOLED = dict(type='GlobalAveragePooling')
ARCH = dict(embed_dims=24, num_layers=4, num_heads=3, feedforward_channels=48)
NETS = dict(
    vit=dict(
        backbone=dict(type='VisionTransformer', arch=ARCH, img_size=16, patch_size=4),
        head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=24),
    ),
    deit=dict(
        backbone=dict(type='DistilledVisionTransformer', arch=ARCH, img_size=16, patch_size=4),
        head=dict(type='DeiTClsHead', num_classes=5, in_channels=24),
    ),
    # Two windows a side in blocks 0 and 2, the whole map in 1 and 3.
    vitdet=dict(
        backbone=dict(
            type='mmdfkd.ViTDet',
            arch={**ARCH, 'global_indices': (1, 3)},
            img_size=16,
            patch_size=4,
            window_size=2,
            pretrain_img_size=16,
        ),
        neck=POOLED,
        head={**HEAD, 'in_channels': 24},
    ),
    resnet=dict(
        backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
        neck=POOLED,
        head={**HEAD, 'in_channels': 64},
    ),
    swin=dict(
        backbone=dict(
            type='SwinTransformer',
            arch=dict(embed_dims=12, depths=[2, 2], num_heads=[2, 2]),
            img_size=16,
            window_size=2,
            patch_size=2,
            out_indices=(1,),
        ),
        neck=POOLED,
        head={**HEAD, 'in_channels': 24},
    ),
)


def teacher(kind: str, seed: int = 0) -> Adapter:
    """A classifier of 16 px images and five classes, of random weights, frozen."""
    from mmpretrain.registry import MODELS

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MODELS.build(dict(type='ImageClassifier', **NETS[kind]))
        for name, parameter in net.named_parameters():
            # Attention that differs from token to token, relative positions that are not zero.
            if 'qkv.weight' in name or 'rel_pos' in name:
                nn.init.normal_(parameter, std=0.5)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    net.eval().requires_grad_(False)
    return build_adapter(net, Normalizer([127.0] * 3, [60.0] * 3, 'rgb'))
