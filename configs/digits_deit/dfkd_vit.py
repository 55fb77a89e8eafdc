# Data-free distillation of the DeiT-like ViT of the digits: half of its parameters.
#   python tools/train.py configs/digits_deit/dfkd_vit.py --work-dir work_dirs/dfkd_vit_digits
#   python tools/test.py configs/digits_deit/dfkd_vit.py work_dirs/dfkd_vit_digits/student.pth
# The digits are read in validation and testing only.
_base_ = [
    '../_base_/runtime.py', '../_base_/dfkd_runtime.py', '../_base_/dfkd_classifier.py',
    '../_base_/digits_classification.py'
]
default_scope = 'mmpretrain'

max_iters = 3000
image_size = 32

model = dict(
    teacher=dict(
        config='{{ fileDirname }}/../digits/deit_digits.py',
        checkpoint='{{ fileDirname }}/../digits/deit_digits.pth'))

train_dataloader = dict(
    dataset=dict(image_size=image_size, metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
