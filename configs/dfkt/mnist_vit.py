# The first paper whole, on MNIST: the transformer-augmented generator and the patch attention loss.
#   python tools/train.py configs/dfkt/mnist_vit.py
#   python tools/test.py configs/dfkt/mnist_vit.py work_dirs/mnist_vit/student.pth
_base_ = [
    '../_base_/runtime.py', '../_base_/dfkd_runtime.py', '../_base_/dfkt.py', '../_base_/mnist.py'
]
default_scope = 'mmpretrain'

max_iters = 3000

model = dict(
    teacher=dict(
        config='{{ fileDirname }}/../mnist/vit_mnist.py',
        checkpoint='{{ fileDirname }}/../mnist/vit_mnist.pth'),
    # The generator starts at a quarter of the image.
    source=dict(generator=dict(base=_base_.image_size // 4)))

train_dataloader = dict(
    dataset=dict(image_size=_base_.image_size, metainfo=dict(classes=_base_.classes)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, T_max=max_iters - 50, eta_min=1e-6),
]
