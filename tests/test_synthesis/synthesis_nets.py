"""Small real networks for the tests of this folder."""

import torch
from torch import nn

from mmdfkd.adapters import Adapter, Normalizer, build_adapter


def classifier(seed: int, classes: int = 5, size: int = 16) -> Adapter:
    """A mmpretrain vision transformer of random weights with distinct answers."""
    from mmpretrain.registry import MODELS

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=dict(
                    type='VisionTransformer',
                    arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48),
                    img_size=size,
                    patch_size=4,
                    drop_path_rate=0.1,
                ),
                head=dict(type='VisionTransformerClsHead', num_classes=classes, in_channels=24),
            )
        )
        nn.init.normal_(net.head.layers.head.weight, std=0.6)
    return build_adapter(net, Normalizer([127.0] * 3, [60.0] * 3, 'rgb'))


def detector(seed: int, classes: int = 3) -> Adapter:
    """A Faster R-CNN of random weights whose proposals are few and whose answers differ."""
    from mmdet.registry import MODELS
    from mmengine.config import Config

    cfg = Config(
        dict(
            type='FasterRCNN',
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=8,
                num_stages=4,
                out_indices=(0, 1, 2, 3),
                norm_cfg=dict(type='BN'),
                style='pytorch',
            ),
            neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5),
            rpn_head=dict(
                type='RPNHead',
                in_channels=16,
                feat_channels=16,
                anchor_generator=dict(
                    type='AnchorGenerator',
                    scales=[4],
                    ratios=[0.5, 1.0, 2.0],
                    strides=[4, 8, 16, 32, 64],
                ),
                bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            ),
            roi_head=dict(
                type='StandardRoIHead',
                bbox_roi_extractor=dict(
                    type='SingleRoIExtractor',
                    roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
                    out_channels=16,
                    featmap_strides=[4, 8, 16, 32],
                ),
                bbox_head=dict(
                    type='Shared2FCBBoxHead',
                    in_channels=16,
                    fc_out_channels=32,
                    roi_feat_size=7,
                    num_classes=classes,
                    bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                ),
            ),
            train_cfg=None,
            test_cfg=dict(
                rpn=dict(
                    nms_pre=200,
                    max_per_img=20,
                    nms=dict(type='nms', iou_threshold=0.7),
                    min_bbox_size=0,
                ),
                rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10),
            ),
        )
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MODELS.build(cfg)
        nn.init.normal_(net.roi_head.bbox_head.fc_cls.weight, std=0.5)
    return build_adapter(net, Normalizer([127.0] * 3, [60.0] * 3, 'rgb'))
