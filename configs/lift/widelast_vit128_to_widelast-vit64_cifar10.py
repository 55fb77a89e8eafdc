# The last block is as wide as the teacher's (encoding mismatch, arXiv 2511.15572): features as they are.
#   python tools/train.py configs/lift/widelast_vit128_to_widelast-vit64_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    student=dict(
        _delete_=True, config='{{ fileDirname }}/widelast-vit64_cifar10.py', init='random'),
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(type='mmdfkd.FeatureHead', align='never'),
    ])
