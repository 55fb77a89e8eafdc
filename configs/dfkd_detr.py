# Data-free distillation of a two-stage Deformable DETR, start to tested student in minutes on two cores.
#   python tools/train.py configs/dfkd_detr.py
#   python tools/test.py configs/dfkd_detr.py work_dirs/dfkd_detr/student.pth
# The digits are read in validation and testing only.
_base_ = [
    '_base_/runtime.py', '_base_/dfkd_runtime.py', '_base_/dfkd_detr.py', '_base_/digits_detection.py'
]
default_scope = 'mmdet'

max_iters = 220

model = dict(
    teacher=dict(
        config='{{ fileDirname }}/digits/deformable_detr_digits.py',
        checkpoint='{{ fileDirname }}/digits/deformable_detr_digits.pth'),
    inheritance=dict(images=256))

# Half of the way back to the start, which is near the teacher (docs/notes/detr.md).
custom_hooks = [*_base_.custom_hooks, dict(type='mmdfkd.StartAverageHook')]

train_dataloader = dict(
    batch_size=8, dataset=dict(image_size=128, metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
