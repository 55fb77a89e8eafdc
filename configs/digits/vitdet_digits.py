# The teacher of configs/dfkd_vitdet.py, trained with labels on the embedded digits:
#   python tools/train.py configs/digits/vitdet_digits.py
_base_ = [
    '../_base_/runtime.py', '../_base_/digits_detection.py', '../_base_/vitdet_digits.py'
]
default_scope = 'mmdet'
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_size=(128, 128),
        recompute_bbox=False,
        allow_negative_crop=True),
    dict(type='Pad', size=(128, 128), pad_val=dict(img=(114, 114, 114))),
    dict(type='PhotoMetricDistortion', brightness_delta=24, contrast_range=(0.7, 1.3)),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=_base_.data_root,
        metainfo=dict(classes=_base_.classes),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=4),
        pipeline=train_pipeline))

max_iters = 3600
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1200)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0., bypass_duplicate=True),
    clip_grad=dict(max_norm=5.0))
# Warm-up, a slow decay while it still learns fast, and a quick one to zero.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=300, end=2000, T_max=5200, eta_min=1e-6),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=2000,
        end=max_iters,
        T_max=max_iters - 2000,
        eta_min=1e-6),
]
