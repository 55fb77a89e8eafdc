# Data-free distillation of a ViTDet, start to tested student in minutes on two cores.
#   python tools/train.py configs/dfkd_vitdet.py
#   python tools/test.py configs/dfkd_vitdet.py work_dirs/dfkd_vitdet/student.pth
# The digits are read in validation and testing only.
_base_ = [
    '_base_/runtime.py', '_base_/dfkd_runtime.py', '_base_/digits_detection.py'
]
default_scope = 'mmdet'

max_iters = 1000
image_size = 128
procedural = dict(type='mmdfkd.ProceduralRenderer')
pool_size = 2048

model = dict(
    type='mmdfkd.DataFreeDistiller',
    teacher=dict(
        config='{{ fileDirname }}/digits/vitdet_digits.py',
        checkpoint='{{ fileDirname }}/digits/vitdet_digits.pth'),
    student=dict(
        type='mmdfkd.Shrunk', width=0.7, depth=0.67, mlp=0.6, neck=0.75, head=0.6, init='inherit'),
    source=dict(type='mmdfkd.PooledSource', renderer=procedural, pool_size=pool_size),
    heads=[
        dict(type='mmdfkd.PyramidHead'),
        dict(type='mmdfkd.RPNResponseHead'),
        dict(type='mmdfkd.RoIResponseHead'),
    ])

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='mmdfkd.GlobalIndexSampler'),
    dataset=dict(
        type='mmdfkd.SyntheticDataset',
        image_size=image_size,
        metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
