# A student that ends in its teacher's own classifier, behind a projector that stays.
_base_ = '../lift/lift-vit88_cifar10.py'
model = dict(
    head=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{ fileDirname }}/../cifar10/vit_cifar10.pth',
            prefix='head')))
