# MiniViT (Zhang et al., CVPR 2022) whole: a ViT learns, its weights shared by twos, from its unshared self.
#   python tools/train.py configs/minivit/minivit_vit128_to_mini-vit128_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
# The last of every two that share; as deep as the teacher.
last = (1, 3, 5)
model = dict(
    student=dict(
        _delete_=True, config='{{ fileDirname }}/mini-vit128_cifar10.py', init='inherit'),
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.QKVRelationHead',
            taps_student=[f'backbone.layers.{i}.qkv' for i in last],
            taps_teacher=[f'backbone.layers.{i}.attn.qkv' for i in last]),
        dict(
            type='mmdfkd.ManifoldHead',
            name='hidden',
            taps_student=[f'backbone.layers.{i}' for i in last],
            # 49 times the mean, weight 0.1.
            intra_weight=4.9,
            inter_weight=0.0,
            random_weight=0.0),
    ])
