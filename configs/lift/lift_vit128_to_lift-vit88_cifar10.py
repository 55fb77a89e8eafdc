# The projector stays in the student (encoding mismatch, arXiv 2511.15572): features as they are.
#   python tools/train.py configs/lift/lift_vit128_to_lift-vit88_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    student=dict(
        _delete_=True, config='{{ fileDirname }}/lift-vit88_cifar10.py', init='random'),
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(type='mmdfkd.FeatureHead', align='never'),
    ])
