# MGD: the teacher's map from a part of the student's (Yang et al., ECCV 2022); its weight, converted.
#   python tools/train.py configs/mgd/mgd_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.GenerationHead',
            taps_student=['backbone.layers.4'],
            taps_teacher=['backbone.layers.5'],
            target='all',
            normalize=False,
            # 2e-5 * D H W.
            loss_weight=0.16),
    ])
