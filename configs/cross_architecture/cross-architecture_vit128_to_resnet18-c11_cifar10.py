# A CNN follows a ViT by its attention and its tokens (Liu et al., ACCV 2022).
#   python tools/train.py configs/cross_architecture/cross-architecture_vit128_to_resnet18-c11_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    student=dict(
        _delete_=True, config='{{ fileDirname }}/resnet18-c11_cifar10.py', init='random'),
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.CrossArchitectureHead',
            tap_student='backbone.layer2',
            tap_teacher='backbone.layers.5'),
    ])
