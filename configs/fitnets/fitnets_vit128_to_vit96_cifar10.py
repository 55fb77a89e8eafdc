# FitNets: a hint half way through, by a linear regressor (Romero et al., ICLR 2015).
#   python tools/train.py configs/fitnets/fitnets_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.FeatureHead',
            taps_student=['backbone.layers.2'],
            taps_teacher=['backbone.layers.2']),
    ])
