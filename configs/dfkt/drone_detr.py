# DETR into a lighter DETR without data, on drone images: the first paper's detection experiment, with
# our detector, images and heads (README.md says what is known of the paper's).
#   python tools/train.py configs/dfkt/drone_detr.py
#   python tools/test.py configs/dfkt/drone_detr.py work_dirs/drone_detr/student.pth
# The tiles (configs/_base_/aerial_cars_detection.py) are read in validation and testing only.
_base_ = [
    '../_base_/runtime.py', '../_base_/dfkd_runtime.py', '../_base_/dfkd_detr.py',
    '../_base_/aerial_cars_detection.py'
]
default_scope = 'mmdet'

max_iters = 600

model = dict(
    teacher=dict(
        config='{{ fileDirname }}/../aerial_cars/deformable_detr_aerial.py',
        checkpoint='{{ fileDirname }}/../aerial_cars/deformable_detr_aerial.pth'),
    inheritance=dict(images=64),
    # 100 queries are chosen among the cells of stride 8.
    image_size=128)

# Half of the way back to the start, which is near the teacher (docs/notes/detr.md).
custom_hooks = [*_base_.custom_hooks, dict(type='mmdfkd.StartAverageHook')]

train_dataloader = dict(
    batch_size=8, dataset=dict(image_size=320, metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
