# A student of 4 heads of 22 whose projector to its teacher's width stays: Lift.
_base_ = '../cifar10/vit_cifar10.py'
model = dict(
    backbone=dict(arch=dict(embed_dims=88, num_layers=5, num_heads=4, feedforward_channels=200)),
    neck=dict(type='mmdfkd.Lift', in_channels=88, out_channels=128))
