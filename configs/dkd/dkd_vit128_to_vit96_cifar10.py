# DKD: the target class and the others, each compared apart (Zhao et al., CVPR 2022); CIFAR weights.
#   python tools/train.py configs/dkd/dkd_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(
            type='mmdfkd.LogitHead',
            loss=dict(type='dkd', alpha=1.0, beta=8.0),
            temperature=4.0,
            # Published beside the labels' cross-entropy: here the teacher's decisions.
            ce_weight=1.0),
    ])
