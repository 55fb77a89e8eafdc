# Attention Probe's second stage whole (Wang et al., ICASSP 2022): KL, noise-adapted labels, probe.
#   python tools/train.py configs/attention_probe/attention-probe_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.NoiseAdaptedHead',
            num_classes=10,
            # The teacher's on 5,000 of its training images; its owner's figure does as well.
            accuracy=0.704),
        dict(
            type='mmdfkd.ProbeHead',
            # After a third, two thirds and all of the blocks.
            taps_student=[f'backbone.layers.{i}' for i in (1, 2, 4)],
            taps_teacher=[f'backbone.layers.{i}' for i in (1, 3, 5)],
            loss_weight=0.8),
    ])
