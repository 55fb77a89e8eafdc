# The student of configs/dearkd: a DeiT whose first two blocks can act as convolutions.
_base_ = [
    '../_base_/runtime.py', '../_base_/cifar10.py', '../_base_/vit_small_images.py'
]
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, type='mmdfkd.ConvAttentionViT', arch=_base_.model.backbone.arch, conv_layers=2, img_size=_base_.image_size, patch_size=4),
    head=dict(_delete_=True, type='DeiTClsHead', num_classes=10, in_channels=128))
