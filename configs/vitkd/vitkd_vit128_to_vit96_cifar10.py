# ViTKD: first blocks mimicked, the last one generated (Yang et al., 2022); published weights, converted.
#   python tools/train.py configs/vitkd/vitkd_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.FeatureHead',
            taps_student=['backbone.layers.0', 'backbone.layers.1'],
            # 3e-5 * 2 N D E: 64 patches, width 128, and E = 4.0 of this teacher's first two blocks.
            loss_weight=2.0),
        dict(
            type='mmdfkd.GenerationHead',
            taps_student=['backbone.ln1'],
            normalize=False,
            # 3e-6 * N D.
            loss_weight=0.025),
    ])
