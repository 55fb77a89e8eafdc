# A hint at every block: the heads of configs/_base_/dfkd_classifier.py.
#   python tools/train.py configs/fitnets/every-block_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.FeatureHead',
            taps_student=[f'backbone.layers.{i}' for i in range(5)],
            taps_teacher=[f'backbone.layers.{i}' for i in (0, 1, 3, 4, 5)],
            loss_weight=2.0),
    ])
