# A student with a distillation token, 96 wide and 5 blocks deep: of configs/deit and configs/co_advise.
_base_ = '../cifar10/vit_cifar10.py'
model = dict(
    backbone=dict(
        type='DistilledVisionTransformer',
        arch=dict(embed_dims=96, num_layers=5, num_heads=3, feedforward_channels=200)),
    head=dict(type='DeiTClsHead', in_channels=96))
