# The teacher of configs/mnist/dfkd_*.py, trained with labels on MNIST:
#   python tools/train.py configs/mnist/vit_mnist.py
_base_ = [
    '../_base_/runtime.py', '../_base_/mnist.py', '../_base_/vit_small_images.py'
]
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)

model = dict(backbone=dict(img_size=_base_.image_size))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=_base_.image_size),
    dict(type='RandomCrop', crop_size=_base_.image_size, padding=2),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    dataset=dict(
        type='CustomDataset',
        data_root=_base_.data_root,
        data_prefix='train',
        metainfo=dict(classes=_base_.classes),
        pipeline=train_pipeline))

max_iters = 2000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=300, end=max_iters, T_max=max_iters - 300, eta_min=1e-6),
]
