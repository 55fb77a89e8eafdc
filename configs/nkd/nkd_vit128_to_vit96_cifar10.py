# NKD: the other classes normalised without the target (Yang et al., ICCV 2023).
#   python tools/train.py configs/nkd/nkd_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead', loss=dict(type='nkd', gamma=1.0), temperature=1.0),
    ])
