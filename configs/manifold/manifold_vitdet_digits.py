# Manifold distillation of a ViT detector: cosines between patches of its blocks and of its pyramid.
#   python tools/train.py configs/manifold/manifold_vitdet_digits.py
_base_ = '../dfkd_vitdet.py'
model = dict(
    heads=[
        dict(type='mmdfkd.PyramidHead'),
        dict(type='mmdfkd.RPNResponseHead'),
        dict(type='mmdfkd.RoIResponseHead'),
        dict(
            type='mmdfkd.ManifoldHead',
            # The first and the last blocks of both.
            taps_student=[f'backbone.blocks.{i}' for i in (0, 1, 2, 3)],
            taps_teacher=[f'backbone.blocks.{i}' for i in (0, 1, 4, 5)]),
        # The finest level has 32 x 32 places, and relations are quadratic in them.
        dict(type='mmdfkd.ManifoldHead', levels=(1, 2), name='pyramid'),
    ])
