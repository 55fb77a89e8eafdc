# The class token behind the final norm in place of a middle block: the heads of configs/dfkd_deit.py.
#   python tools/train.py configs/fitnets/last-features_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(heads=[dict(type='mmdfkd.LogitHead'), dict(type='mmdfkd.FeatureHead')])
