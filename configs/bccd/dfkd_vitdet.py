# Data-free distillation of the ViTDet that finds blood cells; images and heads are the digits' own.
#   python tools/train.py configs/bccd/dfkd_vitdet.py --work-dir work_dirs/dfkd_vitdet_bccd
#   python tools/test.py configs/bccd/dfkd_vitdet.py work_dirs/dfkd_vitdet_bccd/student.pth
# BCCD's val split is read in validation and its test split in testing, nothing in training.
_base_ = [
    '../_base_/runtime.py', '../_base_/dfkd_runtime.py', '../_base_/dfkd_detector.py',
    '../_base_/bccd_detection.py'
]
default_scope = 'mmdet'

max_iters = 1000

model = dict(
    teacher=dict(
        config='{{ fileDirname }}/vitdet_bccd.py', checkpoint='{{ fileDirname }}/vitdet_bccd.pth'))

# Height and width of the photographs as the teacher is tested on them.
train_dataloader = dict(
    batch_size=8,
    dataset=dict(image_size=_base_.image_scale[::-1], metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
