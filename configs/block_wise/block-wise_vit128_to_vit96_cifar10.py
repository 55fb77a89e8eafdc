# Block by block on the teacher's own tokens, for inherited students; then answers alone.
#   python tools/train.py configs/block_wise/block-wise_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(type='mmdfkd.BlockHead', schedule=dict(begin=200, end=300, start=1, stop=0)),
    ])
