# The teacher of configs/cifar10 whose blocks share their weights by twos: MiniViT, 0.52 of its parameters.
_base_ = '../cifar10/vit_cifar10.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdfkd.MiniViT',
        arch=_base_.model.backbone.arch,
        share=2,
        img_size=_base_.image_size,
        patch_size=4))
