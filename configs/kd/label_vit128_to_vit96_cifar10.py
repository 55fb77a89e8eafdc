# The baseline, not data-free: the labels of the real images, and no word of the teacher.
#   python tools/train.py configs/kd/label_vit128_to_vit96_cifar10.py
_base_ = '../cifar10/dfkd_real.py'
model = dict(
    source=dict(labels=True),
    heads=[
        dict(type='mmdfkd.LogitHead', loss='label', hard_labels='target'),
    ])
