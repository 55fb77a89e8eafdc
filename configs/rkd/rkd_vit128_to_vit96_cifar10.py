# RKD: distances and angles between images (Park et al., CVPR 2019); published weights, converted.
#   python tools/train.py configs/rkd/rkd_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.RKDHead',
            taps_student=['backbone.layers.4'],
            taps_teacher=['backbone.layers.5'],
            # 25 (B - 1) / B and 50 (B - 1) (B - 2) / B^2 of a batch of 64.
            distance_weight=24.6,
            angle_weight=47.7),
    ])
