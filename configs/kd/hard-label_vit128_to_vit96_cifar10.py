# Hard labels: the teacher's first class and nothing else.
#   python tools/train.py configs/kd/hard-label_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead', loss='hard'),
    ])
