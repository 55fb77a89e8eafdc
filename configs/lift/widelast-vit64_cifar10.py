# A student of 64 channels whose last block is as wide as its teacher's: WideLast.
_base_ = '../cifar10/vit_cifar10.py'
model = dict(
    backbone=dict(
        arch=dict(embed_dims=64, num_layers=5, num_heads=2, feedforward_channels=160),
        out_type='raw',
        final_norm=False),
    neck=dict(
        type='mmdfkd.WideLast',
        in_channels=64,
        out_channels=128,
        num_heads=4,
        feedforward_channels=256))
