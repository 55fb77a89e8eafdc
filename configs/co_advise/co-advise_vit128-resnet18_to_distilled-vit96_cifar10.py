# Co-advise: a ViT and a CNN, each heard by a token of its own (Ren et al., CVPR 2022). The CNN is trained first:
#   python tools/train.py configs/dearkd/resnet18_cifar10.py
#   python tools/model_converters/publish_model.py work_dirs/resnet18_cifar10/iter_7000.pth configs/dearkd/resnet18_cifar10.pth
#   python tools/train.py configs/co_advise/co-advise_vit128-resnet18_to_distilled-vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    extra_teachers=[
        dict(
            config='{{ fileDirname }}/../dearkd/resnet18_cifar10.py',
            checkpoint='{{ fileDirname }}/../dearkd/resnet18_cifar10.pth')
    ],
    student=dict(
        _delete_=True,
        config='{{ fileDirname }}/../deit/distilled-vit96_cifar10.py',
        init='random'),
    heads=[dict(type='mmdfkd.CoAdviseHead', weights=(1.0, 1.0), temperatures=(1.0, 1.0))])
