# Data-free distillation of a DeiT-like classifier, start to tested student in minutes on two cores.
#   python tools/train.py configs/dfkd_deit.py
#   python tools/test.py configs/dfkd_deit.py work_dirs/dfkd_deit/student.pth
# The digits are read in validation and testing only.
_base_ = [
    '_base_/runtime.py', '_base_/dfkd_runtime.py', '_base_/digits_classification.py'
]
default_scope = 'mmpretrain'

max_iters = 1000
image_size = 32
procedural = dict(type='mmdfkd.ProceduralRenderer')

model = dict(
    type='mmdfkd.DataFreeDistiller',
    teacher=dict(
        config='{{ fileDirname }}/digits/deit_digits.py',
        checkpoint='{{ fileDirname }}/digits/deit_digits.pth'),
    # 3 of 4 heads, 4 of 6 blocks: about a third of the teacher's parameters.
    student=dict(type='mmdfkd.Shrunk', width=0.75, depth=0.67, mlp=0.6, init='inherit'),
    source=dict(type='mmdfkd.PooledSource', renderer=procedural, pool_size=8192),
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(type='mmdfkd.FeatureHead'),
    ])

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    # Said here because mmpretrain's own tool has other defaults.
    persistent_workers=False,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='mmdfkd.GlobalIndexSampler'),
    dataset=dict(
        type='mmdfkd.SyntheticDataset',
        image_size=image_size,
        metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
