# The teacher of configs/dfkd_deit.py, trained with labels on the embedded digits:
#   python tools/train.py configs/digits/deit_digits.py
_base_ = [
    '../_base_/runtime.py', '../_base_/digits_classification.py', '../_base_/deit_digits.py'
]
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)

# Uniform strengths up to the given ones; the digits' ground is black.
_warp = dict(magnitude_std='inf', prob=0.7, pad_val=0, interpolation='bilinear')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Rotate', magnitude_range=(0., 15.), **_warp),
    dict(type='Shear', magnitude_range=(0., 0.2), direction='horizontal', **_warp),
    dict(type='RandomResize', scale=(32, 32), ratio_range=(0.8, 1.2), keep_ratio=False),
    dict(type='RandomCrop', crop_size=32, pad_if_needed=True, pad_val=0),
    dict(type='ColorJitter', brightness=0.3, contrast=0.3),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=48,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root=_base_.data_root,
        data_prefix='train',
        metainfo=dict(classes=_base_.classes),
        pipeline=train_pipeline))

max_iters = 1500
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=250)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100, eta_min=1e-6),
]
