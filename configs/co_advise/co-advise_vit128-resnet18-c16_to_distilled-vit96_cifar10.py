# Co-advise: a ViT and a CNN, each heard by a token of its own (Ren et al., CVPR 2022).
#   python tools/train.py configs/co_advise/co-advise_vit128-resnet18-c16_to_distilled-vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    extra_teachers=[
        dict(
            config='{{ fileDirname }}/../dearkd/resnet18-c16_cifar10.py',
            checkpoint='{{ fileDirname }}/../dearkd/resnet18-c16_cifar10.pth')
    ],
    student=dict(
        _delete_=True,
        config='{{ fileDirname }}/../deit/distilled-vit96_cifar10.py',
        init='random'),
    heads=[dict(type='mmdfkd.CoAdviseHead', weights=(1.0, 1.0), temperatures=(1.0, 1.0))])
