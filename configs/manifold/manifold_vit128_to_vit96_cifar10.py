# Fine-grained manifold distillation (Hao et al., NeurIPS 2022): cosines between patches, released weights.
#   python tools/train.py configs/manifold/manifold_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.ManifoldHead',
            # The first and the last blocks of both.
            taps_student=[f'backbone.layers.{i}' for i in (0, 1, 3, 4)],
            taps_teacher=[f'backbone.layers.{i}' for i in (0, 1, 4, 5)]),
    ])
