"""Tiny networks, a tiny COCO set and a whole distillation run, shared by the tests."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

CLASSES = ('disc', 'square', 'bar')
SIZE = 48
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# Of the box coders of a cascade.
STDS = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1])


def preprocessor(**changes) -> dict:
    """mmdet's, as most of its configs have it."""
    pre = dict(type='DetDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True, pad_size_divisor=16)
    pre.update(changes)
    return pre


def _two_stage(channels: int, classes: int, mask: bool) -> dict:
    """RPN, RoI head and settings over three levels of ``channels``."""
    coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4)
    strides = [4, 8, 16]
    extractor = dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=1),
        out_channels=channels,
        featmap_strides=strides,
        finest_scale=10,
    )
    roi_head = dict(
        type='StandardRoIHead',
        bbox_roi_extractor=extractor,
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=channels,
            fc_out_channels=16,
            roi_feat_size=3,
            num_classes=classes,
            bbox_coder=dict(coder, target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=dict(type='L1Loss'),
        ),
    )
    rcnn = dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)
    if mask:
        roi_head.update(
            mask_roi_extractor=extractor,
            mask_head=dict(
                type='FCNMaskHead',
                num_convs=1,
                in_channels=channels,
                conv_out_channels=channels,
                num_classes=classes,
            ),
        )
        rcnn.update(mask_thr_binary=0.5)
    return dict(
        rpn_head=dict(
            type='RPNHead',
            in_channels=channels,
            feat_channels=channels,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[3], ratios=[0.5, 1.0], strides=strides
            ),
            bbox_coder=coder,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'),
        ),
        roi_head=roi_head,
        train_cfg=None,
        test_cfg=dict(
            rpn=dict(
                nms_pre=60, max_per_img=12, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
            ),
            rcnn=rcnn,
        ),
    )


def detector_model(
    dims: int = 32, layers: int = 2, classes: int = 3, mask: bool = False, drop_path: float = 0.0
) -> dict:
    """A ViTDet Faster R-CNN of some thousand parameters."""
    return dict(
        type='MaskRCNN' if mask else 'FasterRCNN',
        data_preprocessor=preprocessor(**(dict(pad_mask=True) if mask else {})),
        backbone=dict(
            type='mmdfkd.ViTDet',
            arch=dict(
                embed_dims=dims,
                num_layers=layers,
                num_heads=4,
                feedforward_channels=2 * dims,
                global_indices=(layers - 1,),
            ),
            img_size=SIZE,
            patch_size=16,
            window_size=2,
            pretrain_img_size=SIZE,
            pretrain_use_cls_token=False,
            drop_path_rate=drop_path,
        ),
        neck=dict(
            type='mmdfkd.SimpleFPN',
            in_channels=dims,
            out_channels=16,
            scale_factors=(4, 2, 1),
            num_outs=3,
        ),
        **_two_stage(16, classes, mask),
    )


def cascade_model(dims=32, stages=2) -> dict:
    """The tiny Mask R-CNN with a cascade of heads."""
    model = detector_model(dims, 1, mask=True)
    model['type'] = 'CascadeRCNN'
    roi = model['roi_head']
    bbox = [
        dict(
            copy.deepcopy(roi['bbox_head']),
            reg_class_agnostic=True,
            bbox_coder=dict(roi['bbox_head']['bbox_coder'], target_stds=stds),
        )
        for stds in STDS[:stages]
    ]
    roi.update(
        type='CascadeRoIHead',
        num_stages=stages,
        stage_loss_weights=[1.0] * stages,
        bbox_head=bbox,
    )
    return model


def detr_model(
    kind: str = 'deformable',
    width: int = 32,
    dims: int = 32,
    layers: int = 2,
    decoder_layers: int = 2,
    hidden: int = 32,
    queries: int = 12,
    classes: int = 3,
) -> dict:
    """A DETR on ViTDet: ``'deformable'`` or ``'two-stage'`` (of width 256), or plain ``'detr'``."""
    width = 256 if kind == 'two-stage' else width
    head = dict(
        type='DETRHead',
        num_classes=classes,
        embed_dims=width,
        loss_cls=dict(
            type='CrossEntropyLoss', bg_cls_weight=0.1, use_sigmoid=False, class_weight=1.0
        ),
    )
    cost = dict(type='ClassificationCost', weight=1.0)
    attention = dict(embed_dims=width, num_heads=4, dropout=0.0)
    ffn = dict(embed_dims=width, feedforward_channels=hidden, ffn_drop=0.0)
    own, cross, changes = attention, attention, dict(type='DETR')
    if kind != 'detr':
        head.update(type='DeformableDETRHead', loss_cls=dict(type='FocalLoss', use_sigmoid=True))
        cost = dict(type='FocalLossCost', weight=2.0)
        own = cross = dict(attention, num_levels=1)
        changes = dict(
            type='DeformableDETR',
            num_feature_levels=1,
            with_box_refine=True,
            as_two_stage=kind == 'two-stage',
        )
    base = detector_model(dims, layers)
    return dict(
        **changes,
        num_queries=queries,
        data_preprocessor=base['data_preprocessor'],
        backbone=base['backbone'],
        neck=dict(base['neck'], out_channels=width, scale_factors=(2,), num_outs=1),
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=own, ffn_cfg=ffn)),
        decoder=dict(
            num_layers=decoder_layers,
            return_intermediate=True,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=cross, ffn_cfg=ffn),
            post_norm_cfg=dict(type='LN') if kind == 'detr' else None,
        ),
        positional_encoding=dict(num_feats=width // 2, normalize=True),
        bbox_head=dict(
            head,
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
        train_cfg=dict(
            assigner=dict(
                type='HungarianAssigner',
                match_costs=[
                    cost,
                    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                    dict(type='IoUCost', iou_mode='giou', weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=10),
    )


ONE_STAGE = dict(
    retina='retinanet/retinanet_r18_fpn_1x_coco.py',
    fcos='fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    gfl='gfl/gfl_r50_fpn_1x_coco.py',
    rtmdet='rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
)


def one_stage_model(kind: str, width: int = 16, classes: int = 3, **head) -> dict:
    """A published dense detector (a key of ``ONE_STAGE``) with little depth and width."""
    from mmdfkd.distillers.networks import load_config

    model = copy.deepcopy(load_config(f'mmdet::{ONE_STAGE[kind]}').model.to_dict())
    if kind == 'rtmdet':
        model['backbone']['widen_factor'] = 0.125
        model['neck'].update(in_channels=[32, 64, 128], out_channels=width)
    else:
        model['backbone'].update(depth=18, base_channels=8)
        model['neck'].update(in_channels=[8, 16, 32, 64], out_channels=width)
        model['bbox_head'].update(stacked_convs=2)
    if kind in ('fcos', 'gfl'):
        model['bbox_head']['norm_cfg'] = dict(type='GN', num_groups=4)
    model['bbox_head'].update(in_channels=width, feat_channels=width, num_classes=classes)
    model['bbox_head'].update(head)
    return model


DETRS = {
    'detr': 'detr/detr_r50_8xb2-150e_coco.py',
    'conditional': 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'dab': 'dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    'deformable': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'refine': 'deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    'two-stage': 'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'dino': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
}
# mmdet fixes these decoders' width.
FIXED_WIDTH = ('conditional', 'two-stage')
QUERIES = 12


def _set(node, **values):
    """Each value at every place of the config that has its key."""
    if isinstance(node, dict):
        for key in node:
            if key in values:
                node[key] = values[key]
            else:
                _set(node[key], **values)
    elif isinstance(node, list | tuple):
        for item in node:
            _set(item, **values)


def small_detr(kind: str, width: int = 32, **changes) -> dict:
    """A published DETR (a key of ``DETRS``) with little depth and width."""
    from mmdfkd.distillers.networks import load_config

    model = copy.deepcopy(load_config(f'mmdet::{DETRS[kind]}').model.to_dict())
    width = 256 if kind in FIXED_WIDTH else width
    _set(
        model,
        embed_dims=width,
        feedforward_channels=32,
        num_feats=width // 2,
        num_groups=4,
        num_classes=3,
        max_per_img=10,
        num_dn_queries=4,
    )
    channels = {3: [16, 32, 64], 1: [64]}[len(model['backbone']['out_indices'])]
    model['backbone'].update(depth=18, base_channels=8)
    model['neck'].update(in_channels=channels, out_channels=width)
    model['encoder']['num_layers'] = 1
    model['decoder']['num_layers'] = 2
    model['bbox_head']['embed_dims'] = width
    model['num_queries'] = QUERIES
    model['data_preprocessor']['pad_size_divisor'] = 32
    model.update(changes)
    return model


def resnet_model(classes: int = 3) -> dict:
    """A ResNet Faster R-CNN with the same strides: nothing of this project in it."""
    return dict(
        type='FasterRCNN',
        data_preprocessor=preprocessor(),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=4,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(0, 1, 2),
            norm_cfg=dict(type='BN'),
            init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
        ),
        neck=dict(type='FPN', in_channels=[4, 8, 16], out_channels=8, num_outs=3),
        **_two_stage(8, classes, False),
    )


def classifier_model(dims: int = 24, layers: int = 2, classes: int = 5) -> dict:
    """A ViT for 32 px images."""
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=MEAN, std=STD, to_rgb=True),
        backbone=dict(
            type='VisionTransformer',
            arch=dict(
                embed_dims=dims, num_layers=layers, num_heads=2, feedforward_channels=2 * dims
            ),
            img_size=32,
            patch_size=8,
        ),
        head=dict(type='VisionTransformerClsHead', num_classes=classes, in_channels=dims),
    )


def test_pipeline() -> list[dict]:
    """mmdet's, without a change of size."""
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    return [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs', meta_keys=keys),
    ]


def whole(model: dict, scope: str = 'mmdet') -> dict:
    """A whole config, as a teacher's or student's ``config`` wants it."""
    return dict(default_scope=scope, model=copy.deepcopy(model))


def randomise(net: nn.Module, seed: int) -> nn.Module:
    """Give a network decided answers: every weight random and of ordinary size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.dim() < 2:
                centre = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
                value.copy_(centre + 0.2 * noise)
            else:
                value.copy_(noise * 1.4 / value[0].numel() ** 0.5)
    return net


def build(model: dict, seed: int = 0, scope: str = 'mmdet') -> nn.Module:
    """A random network in eval mode."""
    from mmdfkd.distillers import build_network

    return randomise(build_network(Config(whole(model, scope))), seed).eval()


def plain(model: dict, scope: str = 'mmdet') -> nn.Module:
    """The network that mmdet or mmpretrain itself builds of a config."""
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(copy.deepcopy(model))


def images(count: int, size: int = SIZE, seed: int = 0) -> Tensor:
    """Coloured rectangles on smooth ground; RGB in [0, 1], whole grey levels."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        image = cv2.resize(rng.uniform(0, 255, (3, 3, 3)).astype(np.float32), (size, size))
        for _ in range(3):
            x, y = rng.integers(0, size - 12, 2)
            w, h = rng.integers(8, size // 2, 2)
            image[y : y + h, x : x + w] = rng.uniform(0, 255, 3)
        out.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1))
    return torch.stack(out).float() / 255


def write_coco(folder: Path, net: nn.Module | None = None, count: int = 6) -> Path:
    """Images and a COCO file.

    Args:
        folder (Path): Where to.
        net (nn.Module, optional): Its own detections, moved a little, become the ground truth, so
            that its score is neither 0 nor 1.
        count (int): Number of images.

    Returns:
        Path: The annotation file.
    """
    (folder / 'val').mkdir(parents=True, exist_ok=True)
    content = dict(images=[], annotations=[])
    content['categories'] = [dict(id=i, name=name) for i, name in enumerate(CLASSES)]
    pixels = images(count, seed=7)
    boxes = [[(6.0, 6.0, 20.0, 18.0, i % 3)] for i in range(count)]
    if net is not None:
        from mmdfkd.adapters import Normalizer, build_adapter

        adapter = build_adapter(
            net, Normalizer.from_config(whole(dict(data_preprocessor=preprocessor())))
        )
        found = adapter.detect(adapter.encode(pixels))
        for i, one in enumerate(found):
            boxes[i] = [
                (x0 + 1, y0, x1 - x0, y1 - y0, int(label))
                for (x0, y0, x1, y1), label in zip(
                    one.bboxes[:3].tolist(), one.labels[:3].tolist(), strict=True
                )
            ]
    for i, image in enumerate(pixels):
        name = f'{i}.png'
        rgb = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        cv2.imwrite(str(folder / 'val' / name), rgb[..., ::-1])
        content['images'].append(dict(id=i, file_name=name, width=SIZE, height=SIZE))
        for x, y, w, h, label in boxes[i]:
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=i,
                    category_id=label,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                )
            )
    path = folder / 'annotations.json'
    path.write_text(json.dumps(content))
    return path


def coco_loader(folder: Path, workers: int = 0) -> dict:
    """A validation loader over :func:`write_coco`."""
    return dict(
        batch_size=3,
        num_workers=workers,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CocoDataset',
            data_root=str(folder),
            metainfo=dict(classes=CLASSES),
            ann_file='annotations.json',
            data_prefix=dict(img='val/'),
            test_mode=True,
            pipeline=test_pipeline(),
        ),
    )


def run_config(folder: Path, **changes) -> dict:
    """A whole detection run, 6 steps of 2 images, with its teacher and data in ``folder``.

    Args:
        folder (Path): Where teacher and data are written and the work directory lies.
        **changes: Top-level settings, and of the model those whose names begin with ``model_``.
    """
    teacher = detector_model()
    checkpoint = folder / 'teacher.pth'
    if not checkpoint.exists():
        net = build(teacher)
        torch.save(dict(meta={}, state_dict=net.state_dict()), checkpoint)
        write_coco(folder / 'data', net)
    cfg = dict(
        default_scope='mmdet',
        custom_imports=dict(imports=['mmdfkd'], allow_failed_imports=False),
        model=dict(
            type='mmdfkd.DataFreeDistiller',
            teacher=dict(config=whole(teacher), checkpoint=str(checkpoint)),
            student=dict(type='mmdfkd.Shrunk', width=0.5, depth=1.0, init='random'),
            heads=[
                dict(type='mmdfkd.PyramidHead'),
                dict(type='mmdfkd.RPNResponseHead'),
                dict(type='mmdfkd.RoIResponseHead'),
            ],
            source=dict(type='mmdfkd.RenderedSource'),
            inheritance=dict(images=8),
            image_size=SIZE,
        ),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='mmdfkd.GlobalIndexSampler'),
            dataset=dict(
                type='mmdfkd.SyntheticDataset',
                image_size=SIZE,
                renderer=dict(type='mmdfkd.ProceduralRenderer'),
                metainfo=dict(classes=CLASSES),
            ),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6, val_interval=1000),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=5.0)
        ),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)],
        val_dataloader=coco_loader(folder / 'data'),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(
            type='CocoMetric', ann_file=str(folder / 'data' / 'annotations.json'), metric='bbox'
        ),
        test_dataloader=coco_loader(folder / 'data'),
        test_cfg=dict(type='TestLoop'),
        test_evaluator=dict(
            type='CocoMetric', ann_file=str(folder / 'data' / 'annotations.json'), metric='bbox'
        ),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=100),
            checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False),
        ),
        custom_hooks=[
            dict(type='mmdfkd.DistillHook'),
            dict(type='mmdfkd.DataAuditHook'),
            dict(type='mmdfkd.StudentExportHook'),
        ],
        log_level='ERROR',
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=3),
        work_dir=str(folder / 'run'),
        load_from=None,
        resume=False,
    )
    for key, value in changes.items():
        if key.startswith('model_'):
            cfg['model'][key[6:]] = value
        else:
            cfg[key] = value
    return cfg


def runner_of(cfg: dict):
    """A Runner of its own name, whatever ran before in this process."""
    from mmengine.runner import Runner

    runner_of.count += 1
    cfg = dict(copy.deepcopy(cfg), experiment_name=f'toy{runner_of.count}')
    return Runner.from_cfg(_fast(cfg))


runner_of.count = 0


def start_of(distiller) -> dict[str, Tensor]:
    """The student's trained weights as a run starts with them; filled when it has started."""
    before, start = {}, distiller._start_student

    def started(images) -> None:
        start(images)
        before.update(
            (n, p.detach().clone())
            for n, p in distiller.student.net.named_parameters()
            if p.requires_grad
        )

    distiller._start_student = started
    return before


def write_config(cfg: dict, path: Path) -> Path:
    """Write a config file that the tools can read."""
    _fast(cfg).dump(path)
    return path


def _fast(cfg: dict) -> Config:
    # Formatting the text of a config, at every checkpoint, takes most of a tiny run.
    return Config(dict(cfg), format_python_code=False)
