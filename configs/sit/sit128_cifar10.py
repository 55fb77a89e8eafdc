# The teacher of configs/cifar10 with its patches merged on the way: 64, then 32, then 16 of them.
_base_ = '../cifar10/vit_cifar10.py'
model = dict(
    backbone=dict(_delete_=True, type='mmdfkd.SlimmedViT', arch=_base_.model.backbone.arch, slim_before=(2, 4), keep=0.5, img_size=_base_.image_size, patch_size=4))
