# SimReg: the direction of the class token, by an MLP (Navaneet et al., BMVC 2021).
#   python tools/train.py configs/simreg/simreg_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(type='mmdfkd.SimRegHead'),
    ])
