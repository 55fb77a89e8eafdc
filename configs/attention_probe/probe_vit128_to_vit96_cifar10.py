# The class token's likeness to the patches (Wang et al., ICASSP 2022), beside KL.
#   python tools/train.py configs/attention_probe/probe_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.ProbeHead',
            # After a third, two thirds and all of the blocks.
            taps_student=[f'backbone.layers.{i}' for i in (1, 2, 4)],
            taps_teacher=[f'backbone.layers.{i}' for i in (1, 3, 5)],
            loss_weight=0.8),
    ])
