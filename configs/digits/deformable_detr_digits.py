# The teacher of configs/dfkd_detr.py, trained with labels on the embedded digits; its backbone starts
# from the ViTDet's:
#   python tools/train.py configs/digits/deformable_detr_digits.py
_base_ = [
    '../_base_/runtime.py', '../_base_/digits_training.py', '../_base_/deformable_detr_digits.py'
]
default_scope = 'mmdet'
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{ fileDirname }}/vitdet_digits.pth',
            prefix='backbone.')))

max_iters = 1500
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-4, betas=(0.9, 0.99), weight_decay=1e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0.,
        bias_decay_mult=0.,
        bypass_duplicate=True,
        custom_keys={
            # It can see digits already.
            'backbone': dict(lr_mult=0.3),
            # As in every published config of Deformable DETR.
            'sampling_offsets': dict(lr_mult=0.1),
            'reference_points': dict(lr_mult=0.1)
        }),
    clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=100,
        end=max_iters,
        T_max=max_iters - 100,
        eta_min=1e-6),
]
