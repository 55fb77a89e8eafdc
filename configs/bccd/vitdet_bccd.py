# The teacher of configs/bccd/dfkd_*.py, trained with labels on BCCD:
#   python tools/train.py configs/bccd/vitdet_bccd.py
# Its backbone starts at that of the digits' teacher; 205 images are few to train one from nothing.
_base_ = [
    '../_base_/runtime.py', '../_base_/bccd_detection.py', '../_base_/vitdet_digits.py'
]
default_scope = 'mmdet'
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{ fileDirname }}/../digits/vitdet_digits.pth',
            prefix='backbone.')),
    # Cells are of 15 to 110 px here: no level of stride 4, one of stride 32.
    neck=dict(scale_factors=(2, 1, 0.5)),
    rpn_head=dict(anchor_generator=dict(scales=[2, 3], strides=[8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[8, 16, 32]), bbox_head=dict(num_classes=3)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomResize', scale=_base_.image_scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_size=_base_.image_scale[::-1],
        recompute_bbox=False,
        allow_negative_crop=True),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='Pad', size=_base_.image_scale, pad_val=dict(img=(114, 114, 114))),
    dict(type='PhotoMetricDistortion', brightness_delta=24, contrast_range=(0.7, 1.3)),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=_base_.data_root,
        metainfo=dict(classes=_base_.classes),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=4),
        pipeline=train_pipeline))

max_iters = 2400
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1200)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-4, betas=(0.9, 0.99), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0., bypass_duplicate=True),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=200,
        end=max_iters,
        T_max=max_iters - 200,
        eta_min=1e-6),
]
