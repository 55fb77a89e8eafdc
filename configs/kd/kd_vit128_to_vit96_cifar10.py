# KD: the divergence from softened answers (Hinton et al., 2015), alone.
#   python tools/train.py configs/kd/kd_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
    ])
