# TaT: each patch of the teacher from all of the student (Lin et al., CVPR 2022), as released.
#   python tools/train.py configs/tat/tat_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.TargetAwareHead',
            taps_student=['backbone.layers.4'],
            taps_teacher=['backbone.layers.5'],
            orientation='release',
            scale=1.0,
            normalize=False,
            loss_weight=0.2),
    ])
