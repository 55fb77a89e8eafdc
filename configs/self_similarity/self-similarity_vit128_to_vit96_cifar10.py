# Token self-similarity: which patches of an image are alike (the local loss of Lightly Train).
#   python tools/train.py configs/self_similarity/self-similarity_vit128_to_vit96_cifar10.py
_base_ = '../_base_/methods_cifar10.py'
model = dict(
    heads=[
        dict(type='mmdfkd.LogitHead'),
        dict(
            type='mmdfkd.SelfSimilarityHead',
            taps_student=['backbone.layers.4'],
            taps_teacher=['backbone.layers.5']),
    ])
