# CWD: where each channel peaks (Shu et al., ICCV 2021); the weight of a level as in MMRazor.
#   python tools/train.py configs/cwd/cwd_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.ChannelWiseHead',
            taps_student=['backbone.layers.4'],
            taps_teacher=['backbone.layers.5'],
            loss_weight=10.0),
    ])
