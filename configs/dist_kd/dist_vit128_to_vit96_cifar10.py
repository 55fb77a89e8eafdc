# DIST: correlations over classes and over images (Huang et al., NeurIPS 2022).
#   python tools/train.py configs/dist_kd/dist_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(
            type='mmdfkd.LogitHead',
            loss=dict(type='dist', inter_weight=1.0, intra_weight=1.0),
            temperature=1.0,
            # Published beside the labels' cross-entropy: here the teacher's decisions.
            ce_weight=1.0),
    ])
