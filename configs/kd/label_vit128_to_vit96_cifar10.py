# The baseline, not data-free: the labels of the real images, and no word of the teacher.
#   python tools/train.py configs/kd/label_vit128_to_vit96_cifar10.py
_base_ = '../cifar10/dfkd_real.py'
model = dict(
    # The student of all methods: configs/_base_/methods_cifar10.py.
    student=dict(width=0.75, depth=0.84, mlp=0.8),
    source=dict(labels=True),
    heads=[
        dict(type='mmdfkd.LogitHead', loss='label', hard_labels='target'),
    ])
