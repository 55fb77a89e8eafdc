# MiniViT's losses (Zhang et al., CVPR 2022): relations of queries, keys, values, and hidden ones.
#   python tools/train.py configs/minivit/minivit_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.QKVRelationHead',
            taps_student=[f'backbone.layers.{i}.attn.qkv' for i in (1, 2, 4)],
            taps_teacher=[f'backbone.layers.{i}.attn.qkv' for i in (1, 3, 5)]),
        dict(
            type='mmdfkd.ManifoldHead',
            name='hidden',
            taps_student=[f'backbone.layers.{i}' for i in (1, 2, 4)],
            taps_teacher=[f'backbone.layers.{i}' for i in (1, 3, 5)],
            # 49 times the mean, weight 0.1.
            intra_weight=4.9,
            inter_weight=0.0,
            random_weight=0.0),
    ])
