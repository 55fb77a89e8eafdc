# Data-free distillation of a DeiT-like classifier, start to tested student in minutes on two cores.
#   python tools/train.py configs/dfkd_deit.py
#   python tools/test.py configs/dfkd_deit.py work_dirs/dfkd_deit/student.pth
# The digits are read in validation and testing only.
_base_ = [
    '_base_/runtime.py', '_base_/dfkd_runtime.py', '_base_/dfkd_classifier.py',
    '_base_/digits_classification.py'
]
default_scope = 'mmpretrain'

max_iters = 1000
image_size = 32

model = dict(
    teacher=dict(
        config='{{ fileDirname }}/digits/deit_digits.py',
        checkpoint='{{ fileDirname }}/digits/deit_digits.pth'),
    # 3 of 4 heads, 4 of 6 blocks: about a third of the teacher's parameters.
    student=dict(width=0.75, depth=0.67, mlp=0.6),
    source=dict(
        _delete_=True, type='mmdfkd.PooledSource', renderer=_base_.procedural, pool_size=8192),
    # As measured in docs/results/classifiers.jsonl.
    heads=[dict(type='mmdfkd.LogitHead'), dict(type='mmdfkd.FeatureHead')])

batch_size = 64
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(image_size=image_size, metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
