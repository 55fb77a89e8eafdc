# DearKD (Chen et al., CVPR 2022) in its data-free mode: early features of a CNN in a first stage.
#   python tools/train.py configs/dearkd/dearkd_resnet18-c16_to_vit128_cifar10.py
# What is the paper's and what is ours is in README.md.
_base_ = [
    '../_base_/runtime.py', '../_base_/dfkd_runtime.py', '../_base_/dfkd_classifier.py',
    '../_base_/cifar10.py'
]
default_scope = 'mmpretrain'

max_iters = 1200
# As 250 of 300 epochs.
stage = 1000
first = dict(points=[(0, 1), (stage - 1, 1), (stage, 0)])
second = dict(points=[(0, 0), (stage - 1, 0), (stage, 1)])

model = dict(
    teacher=dict(
        config='{{ fileDirname }}/resnet18-c16_cifar10.py',
        checkpoint='{{ fileDirname }}/resnet18-c16_cifar10.pth'),
    student=dict(_delete_=True, config='{{ fileDirname }}/vit128_cifar10.py', init='random'),
    heads=[
        # First stage: half the labels, half the teacher's decisions, and its first stages.
        dict(type='mmdfkd.DistillationTokenHead', labels='target', schedule=first),
        dict(
            type='mmdfkd.EarlyFeatureHead',
            # Behind the convolutional blocks; maps of 16 and of 8 px, the second as fine as the patches.
            taps_student=['backbone.layers.0', 'backbone.layers.1'],
            taps_teacher=['backbone.layer2', 'backbone.layer3'],
            prefix_tokens=(2, 0),
            channels_last=False,
            schedule=first),
        # Second stage: the labels alone.
        dict(
            type='mmdfkd.DistillationTokenHead',
            name='label',
            labels='target',
            alpha=0.0,
            schedule=second),
    ],
    # DeepInversion on the teacher's batch norms, with the divergence within a class that keeps to its
    # boundaries.
    source=dict(
        _delete_=True,
        type='mmdfkd.PixelInversionSource',
        images=2560,
        batch=128,
        steps=100,
        share=1.0,
        start='noise',
        views=dict(type='mmdfkd.InversionViews', flip=0.5),
        priors=[
            dict(type='mmdfkd.TargetPrior', weight=1.0),
            dict(type='mmdfkd.TotalVariationPrior', weight=0.02),
            dict(type='mmdfkd.BatchNormPrior', weight=1.0),
            dict(type='mmdfkd.BoundaryPreservingPrior', weight=1.0),
        ]))

train_dataloader = dict(
    batch_size=64,
    dataset=dict(image_size=_base_.image_size, metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
