# Data-free distillation of the ViT trained on CIFAR-10: half of its parameters.
#   python tools/train.py configs/cifar10/dfkd_vit.py --work-dir work_dirs/dfkd_vit_cifar10
#   python tools/test.py configs/cifar10/dfkd_vit.py work_dirs/dfkd_vit_cifar10/student.pth
# CIFAR-10's test split is read in validation and testing, nothing in training.
_base_ = [
    '../_base_/runtime.py', '../_base_/dfkd_runtime.py', '../_base_/dfkd_classifier.py',
    '../_base_/cifar10.py'
]
default_scope = 'mmpretrain'

max_iters = 3000

model = dict(
    teacher=dict(
        config='{{ fileDirname }}/vit_cifar10.py', checkpoint='{{ fileDirname }}/vit_cifar10.pth'))

train_dataloader = dict(
    dataset=dict(image_size=_base_.image_size, metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
