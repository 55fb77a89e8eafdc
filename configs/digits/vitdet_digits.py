# The teacher of configs/dfkd_vitdet.py, trained with labels on the embedded digits:
#   python tools/train.py configs/digits/vitdet_digits.py
_base_ = [
    '../_base_/runtime.py', '../_base_/digits_training.py', '../_base_/vitdet_digits.py'
]
default_scope = 'mmdet'
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)

max_iters = 3600
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1200)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0., bypass_duplicate=True),
    clip_grad=dict(max_norm=5.0))
# Warm-up, a slow decay while it still learns fast, and a quick one to zero.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=300, end=2000, T_max=5200, eta_min=1e-6),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=2000,
        end=max_iters,
        T_max=max_iters - 2000,
        eta_min=1e-6),
]
