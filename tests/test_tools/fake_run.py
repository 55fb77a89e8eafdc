"""A finished run of tiny networks with random weights, as the export of a real one leaves it."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmdfkd.utils.checkpoint import save_tensors

CLASSES = ('cat', 'dog')
SIZE = 64


def _draw(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    image = rng.integers(0, 120, (SIZE, SIZE, 3), dtype=np.uint8)
    x, y = (int(v) for v in rng.integers(2, 24, 2))
    w, h = (int(v) for v in rng.integers(16, 32, 2))
    image[y : y + h, x : x + w] = (30, 200, 240)
    return image, [x, y, w, h]


def detection_set(folder: Path, count: int) -> None:
    """Write ``count`` images and a COCO file."""
    rng = np.random.default_rng(0)
    (folder / 'val').mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        image, box = _draw(rng)
        cv2.imwrite(str(folder / 'val' / f'{i}.png'), image)
        images.append(dict(id=i, file_name=f'{i}.png', width=SIZE, height=SIZE))
        annotations.append(
            dict(
                id=i + 1,
                image_id=i,
                category_id=i % 2 + 1,
                bbox=box,
                area=box[2] * box[3],
                iscrowd=0,
            )
        )
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'val.json').write_text(json.dumps(content))


def classification_set(folder: Path, count: int) -> None:
    """Write ``count`` images in a folder for each class."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / 'val' / CLASSES[i % 2] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(_draw(rng)[0], (32, 32)))


def detector(dims: int, layers: int, proposals: int = 200) -> dict:
    """A ViTDet of a few thousand parameters."""
    coder = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
    nms = dict(type='nms', iou_threshold=0.7)
    return dict(
        type='FasterRCNN',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[100.0] * 3,
            std=[60.0] * 3,
            bgr_to_rgb=True,
            pad_size_divisor=16,
        ),
        backbone=dict(
            type='mmdfkd.ViTDet',
            arch=dict(
                embed_dims=dims,
                num_layers=layers,
                num_heads=2,
                feedforward_channels=2 * dims,
                global_indices=(layers - 1,),
            ),
            img_size=SIZE,
            window_size=2,
            pretrain_img_size=SIZE,
            pretrain_use_cls_token=False,
        ),
        neck=dict(
            type='mmdfkd.SimpleFPN',
            in_channels=dims,
            out_channels=dims,
            scale_factors=(2, 1),
            num_outs=2,
        ),
        rpn_head=dict(
            type='RPNHead',
            in_channels=dims,
            feat_channels=dims,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[5], ratios=[1.0], strides=[8, 16]
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=1),
                out_channels=dims,
                featmap_strides=[8, 16],
            ),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=dims,
                fc_out_channels=dims,
                roi_feat_size=3,
                num_classes=len(CLASSES),
                bbox_coder=coder,
                reg_class_agnostic=True,
            ),
        ),
        train_cfg=None,
        test_cfg=dict(
            rpn=dict(nms_pre=256, max_per_img=proposals, nms=nms, min_bbox_size=0),
            # Random weights: whatever the score, something is detected.
            rcnn=dict(score_thr=0.0, nms=nms, max_per_img=400),
        ),
    )


def classifier(dims: int, layers: int) -> dict:
    """A ViT of a few thousand parameters."""
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[100.0] * 3, std=[60.0] * 3, to_rgb=True),
        backbone=dict(
            type='VisionTransformer',
            arch=dict(
                embed_dims=dims, num_layers=layers, num_heads=2, feedforward_channels=2 * dims
            ),
            img_size=32,
            patch_size=8,
        ),
        head=dict(type='VisionTransformerClsHead', num_classes=len(CLASSES), in_channels=dims),
    )


def _detection_config(data: Path) -> dict:
    pipeline = [
        dict(type='LoadImageFromFile'),
        # The network sees twice the size of the file.
        dict(type='Resize', scale=(2 * SIZE, 2 * SIZE), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        ),
    ]
    dataset = dict(
        type='CocoDataset',
        data_root=str(data),
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=CLASSES),
        test_mode=True,
        pipeline=pipeline,
    )
    evaluator = dict(type='CocoMetric', ann_file=str(data / 'val.json'), metric='bbox')
    return dict(default_scope='mmdet', dataset=dataset, test_evaluator=evaluator)


def _classification_config(data: Path) -> dict:
    dataset = dict(
        type='CustomDataset',
        data_root=str(data / 'val'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
    evaluator = dict(type='Accuracy', topk=(1,))
    return dict(default_scope='mmpretrain', dataset=dataset, test_evaluator=evaluator)


def _build(model: dict, scope: str) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(Config(dict(model=model)).model)


def write_run(work_dir: Path, kind: str, images: int = 4, **facts) -> Path:
    """Write a finished run and its test set.

    Args:
        work_dir: Where the run lies.
        kind: ``'detection'`` or ``'classification'``.
        images: Size of the test set.
        **facts: Replace those of ``run.json``.

    Returns:
        Path: A config whose ``work_dir`` is the run's.
    """
    data = work_dir.parent / f'{kind}_set'
    detection = kind == 'detection'
    (detection_set if detection else classification_set)(data, images)
    ordinary = (_detection_config if detection else _classification_config)(data)
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=ordinary.pop('dataset'),
    )
    ordinary |= dict(test_dataloader=loader, test_cfg=dict(type='TestLoop'), work_dir=None)
    if detection:
        ordinary['custom_imports'] = dict(imports=['mmdfkd.models'], allow_failed_imports=False)
    make = detector if detection else classifier
    work_dir.mkdir(parents=True)
    torch.manual_seed(0)
    teacher, student = make(32, 2), make(16, 1)
    scope = ordinary['default_scope']
    Config(dict(model=teacher, **ordinary)).dump(work_dir / 'teacher_config.py')
    Config(dict(model=student, **ordinary)).dump(work_dir / 'student_config.py')
    save_tensors(_build(teacher, scope).state_dict(), work_dir / 'teacher.pth', {})
    for name in ('student_start.pth', 'student.pth'):
        save_tensors(_build(student, scope).state_dict(), work_dir / name, {})
    size = SIZE if detection else 32
    samples = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
    save_tensors(dict(images=samples), work_dir / 'synthetic_samples.pth', {})
    scalars = work_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    scalars.parent.mkdir(parents=True)
    lines = [
        dict(iter=i, step=i, loss=9.0 / i, loss_kl=4.0 / i, loss_rpn=5.0 / i) for i in (1, 2, 3)
    ]
    scalars.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    content = dict(
        # A relative path that only the work directory resolves.
        teacher_checkpoint='teacher.pth',
        seed=3,
        steps=7,
        seconds=12.5,
        threads=1,
        train_images_read=0,
        data_free=True,
        init='inherit',
        source='procedural',
        commit='abc1234',
        config='tiny.py',
        command='train.py tiny.py',
        inheritance=None,
        dataset_classes=list(CLASSES),
        finished=True,
    )
    (work_dir / 'run.json').write_text(json.dumps(content | facts))
    config = work_dir.parent / 'tiny.py'
    config.write_text(f'work_dir = {str(work_dir)!r}\n')
    return config
