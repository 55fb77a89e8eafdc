# A convolutional teacher for configs/dearkd: ResNet-18 for 32 px images at a quarter of its width,
# trained as the ViT is, for fewer steps.
#   python tools/train.py configs/dearkd/resnet18-c16_cifar10.py
_base_ = ['../cifar10/vit_cifar10.py']

model = dict(
    backbone=dict(_delete_=True, type='ResNet_CIFAR', depth=18, stem_channels=16, base_channels=16, num_stages=4, out_indices=(3, ), style='pytorch'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))

max_iters = 3000
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=300, end=max_iters, T_max=max_iters - 300, eta_min=1e-6),
]
