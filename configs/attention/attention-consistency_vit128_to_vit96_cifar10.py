# Attention consistency: the rows of all patches, as distributions.
#   python tools/train.py configs/attention/attention-consistency_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.AttentionHead',
            taps_student=['backbone.layers.2.attn.qkv', 'backbone.layers.4.attn.qkv'],
            taps_teacher=['backbone.layers.3.attn.qkv', 'backbone.layers.5.attn.qkv'],
            rows='all',
            mode='kl'),
    ])
