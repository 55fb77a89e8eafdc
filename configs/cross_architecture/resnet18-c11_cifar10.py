# A small CNN: the student of configs/cross_architecture.
_base_ = '../cifar10/vit_cifar10.py'
model = dict(
    backbone=dict(
        _delete_=True, type='ResNet_CIFAR', depth=18, stem_channels=11, base_channels=11),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=10,
        in_channels=88,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
