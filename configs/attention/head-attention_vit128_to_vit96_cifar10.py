# Head by head: the class token's row in each head that the student kept of its teacher's. Inherited students only.
#   python tools/train.py configs/attention/head-attention_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.AttentionHead',
            # The blocks that they are made from: of this teacher the last of six is dropped.
            taps_student=['backbone.layers.2.attn.qkv', 'backbone.layers.4.attn.qkv'],
            mode='head_ssim'),
    ])
