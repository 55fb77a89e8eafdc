# A convolutional teacher for configs/dearkd: ResNet-18 for 32 px images at a quarter of its width.
#   python tools/train.py configs/dearkd/resnet18-c16_cifar10.py
_base_ = [
    '../_base_/runtime.py', '../_base_/cifar10.py', '../_base_/vit_small_images.py'
]
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='ResNet_CIFAR', depth=18, stem_channels=16, base_channels=16, num_stages=4, out_indices=(3, ), style='pytorch'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
train_dataloader = dict(
    dataset=dict(
        type='CustomDataset',
        data_root=_base_.data_root,
        data_prefix='train',
        metainfo=dict(classes=_base_.classes),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=_base_.image_size),
            dict(type='RandomCrop', crop_size=_base_.image_size, padding=4, padding_mode='reflect'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ]))

max_iters = 3000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=300, end=max_iters, T_max=max_iters - 300, eta_min=1e-6),
]
