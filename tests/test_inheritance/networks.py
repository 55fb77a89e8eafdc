"""Tiny networks with random, non-trivial weights, and smooth random images."""

import math

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmdfkd.adapters import Adapter, Normalizer, build_adapter

MEAN, STD = [120.0, 115.0, 105.0], [58.0, 57.0, 57.5]


def classifier_config(**backbone) -> Config:
    """A ViT of 5 blocks for images of 32 px."""
    arch = dict(embed_dims=32, num_layers=5, num_heads=4, feedforward_channels=64)
    vit = dict(type='VisionTransformer', arch=arch, img_size=32, patch_size=8)
    vit.update(backbone)
    head = 'DeiTClsHead' if vit['type'].startswith('Distilled') else 'VisionTransformerClsHead'
    if vit.get('out_type') == 'avg_featmap':
        head = 'LinearClsHead'
    return Config(
        dict(
            default_scope='mmpretrain',
            data_preprocessor=dict(num_classes=6, mean=MEAN, std=STD, to_rgb=True),
            model=dict(
                type='ImageClassifier',
                backbone=vit,
                head=dict(type=head, num_classes=6, in_channels=vit['arch']['embed_dims']),
            ),
        )
    )


def detector_config(
    scale_factors=(4, 2, 1, 0.5), bbox_head='Shared2FCBBoxHead', mask=False, num_convs=1
) -> Config:
    """A ViTDet of 6 blocks, 3 heads, for images of 64 px."""
    strides = [8 / f for f in scale_factors]
    box = dict(
        type=bbox_head,
        in_channels=16,
        fc_out_channels=24,
        roi_feat_size=3,
        num_classes=4,
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
        ),
        loss_cls=dict(type='CrossEntropyLoss'),
        loss_bbox=dict(type='L1Loss'),
    )
    if 'Conv' in bbox_head:
        box.update(conv_out_channels=16, norm_cfg=dict(type='mmdfkd.LayerNorm2d'))
    extractor = dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=1),
        out_channels=16,
        featmap_strides=strides,
        finest_scale=8,
    )
    roi_head = dict(type='StandardRoIHead', bbox_roi_extractor=extractor, bbox_head=box)
    rcnn = dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)
    if mask:
        roi_head.update(
            mask_roi_extractor=extractor,
            mask_head=dict(
                type='FCNMaskHead', num_convs=2, in_channels=16, conv_out_channels=16, num_classes=4
            ),
        )
        rcnn.update(mask_thr_binary=0.5)
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(
                type='MaskRCNN' if mask else 'FasterRCNN',
                data_preprocessor=dict(
                    type='DetDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True
                ),
                backbone=dict(
                    type='mmdfkd.ViTDet',
                    arch=dict(
                        embed_dims=48,
                        num_layers=6,
                        num_heads=3,
                        feedforward_channels=64,
                        global_indices=(2, 5),
                    ),
                    img_size=64,
                    patch_size=8,
                    window_size=3,
                    pretrain_img_size=48,
                    init_cfg=dict(type='Pretrained', checkpoint='nowhere.pth'),
                ),
                neck=dict(
                    type='mmdfkd.SimpleFPN',
                    in_channels=48,
                    out_channels=16,
                    scale_factors=scale_factors,
                    num_outs=len(scale_factors),
                ),
                rpn_head=dict(
                    type='RPNHead',
                    in_channels=16,
                    feat_channels=16,
                    num_convs=num_convs,
                    anchor_generator=dict(
                        type='AnchorGenerator', scales=[2], ratios=[0.5, 1.0], strides=strides
                    ),
                    bbox_coder=dict(
                        type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4
                    ),
                    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
                    loss_bbox=dict(type='L1Loss'),
                ),
                roi_head=roi_head,
                train_cfg=None,
                test_cfg=dict(
                    rpn=dict(
                        nms_pre=50,
                        max_per_img=12,
                        nms=dict(type='nms', iou_threshold=0.7),
                        min_bbox_size=0,
                    ),
                    rcnn=rcnn,
                ),
            ),
        )
    )


def build(cfg: Config, model=None, seed: int = 0, double: bool = True) -> Adapter:
    """Build a network with random weights that leave nothing at its neutral value."""
    import mmdet.models
    import mmpretrain.models

    scopes = {'mmdet': mmdet.models, 'mmpretrain': mmpretrain.models}
    model = (model or cfg.model).copy()
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        from mmengine.registry import MODELS

        assert cfg.default_scope in scopes
        net = MODELS.build(model)
    randomise(net, seed)
    net = net.double() if double else net
    return build_adapter(net.eval(), Normalizer.from_config(cfg))


def randomise(net: nn.Module, seed: int) -> None:
    """Random weights of ordinary size, affines and tables included."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: Tensor, mean: float, std: float) -> None:
        parameter.detach().copy_(mean + std * torch.randn(parameter.shape, generator=generator))

    norms = {id(p) for m in net.modules() if isinstance(m, nn.LayerNorm) for p in (m.weight,)}
    for name, parameter in net.named_parameters():
        if id(parameter) in norms:
            normal(parameter, 1.0, 0.3)
        elif parameter.dim() == 1:
            normal(parameter, 0.0, 0.2)
        elif 'rel_pos' in name or 'embed' in name and parameter.dim() == 3 or 'token' in name:
            normal(parameter, 0.0, 0.3)
        else:
            fan = (
                parameter[0].numel()
                if parameter.dim() != 4 or parameter.shape[-1] == 1
                else parameter[0].numel() / 2
            )
            normal(parameter, 0.0, 1.2 / math.sqrt(fan))


def smooth_images(count: int, size: int, seed: int = 0) -> Tensor:
    """Smooth colour noise with filled rectangles, ``[count, 3, size, size]`` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    images = F.interpolate(coarse, size=(size, size), mode='bicubic', align_corners=False).clamp(
        0, 1
    )
    for image in images:
        for _ in range(3):
            y, x = (torch.rand(2, generator=generator) * size * 0.7).int().tolist()
            h, w = (4 + torch.rand(2, generator=generator) * size * 0.4).int().tolist()
            image[:, y : y + h, x : x + w] = torch.rand(
                3, 1, 1, generator=generator, dtype=torch.float64
            )
    return images
