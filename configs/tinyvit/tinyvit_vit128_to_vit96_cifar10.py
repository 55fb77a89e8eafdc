# TinyViT's sparse labels (Wu et al., ECCV 2022): 5 of 10 probabilities, the rest spread evenly.
#   python tools/train.py configs/tinyvit/tinyvit_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead', loss=dict(type='top_k', k=5)),
    ])
