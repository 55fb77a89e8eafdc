# The known channel map of an inherited student in place of a projector.
#   python tools/train.py configs/channel_map/channel-map_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.ChannelMapHead',
            taps_student=['backbone.layers.4'],
            taps_teacher=['backbone.layers.5']),
    ])
