# Logits in units of their own spread (Sun et al., CVPR 2024); the published weight.
#   python tools/train.py configs/logit_standardization/logit-standardization_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead', standardize=True, temperature=2.0, loss_weight=9.0),
    ])
