"""Settings of heads that do not fit the networks stop a run when it is built, and say why."""

import pytest
import toy

from mmdfkd.registry import MODELS

BLOCK = 'backbone.layers.1'


def convolutional(classes=5, base=4):
    model = toy.classifier_model()
    model['backbone'] = dict(type='ResNet_CIFAR', depth=18, base_channels=base, stem_channels=base)
    model['neck'] = dict(type='GlobalAveragePooling')
    model['head'] = dict(type='LinearClsHead', num_classes=classes, in_channels=8 * base)
    return model


def build(head, student=None):
    student = toy.classifier_model() if student is None else student
    return MODELS.build(
        dict(
            type='mmdfkd.DataFreeDistiller',
            teacher=dict(config=toy.whole(toy.classifier_model(), 'mmpretrain'), checkpoint='none'),
            student=dict(config=toy.whole(student, 'mmpretrain'), init='random'),
            heads=[dict(type='mmdfkd.LogitHead'), head],
            source=dict(type='mmdfkd.RenderedSource'),
            image_size=32,
        )
    )


@pytest.mark.parametrize(
    ('head', 'student', 'error', 'message'),
    [
        # Misspelt, and a block that is not there: what there is, is offered.
        (
            dict(type='mmdfkd.ManifoldHead', taps_student=['backbone.layer.1']),
            None,
            KeyError,
            r"no module 'backbone\.layer\.1'.*'backbone' has no 'layer', but .*'layers'",
        ),
        (
            dict(
                type='mmdfkd.ManifoldHead', taps_student=[BLOCK], taps_teacher=['backbone.layers.9']
            ),
            None,
            KeyError,
            r"'backbone\.layers' has 0 to \d",
        ),
        # Attention of a CNN.
        (
            dict(
                type='mmdfkd.AttentionHead',
                taps_student=['backbone.layer4.attn.qkv'],
                taps_teacher=[f'{BLOCK}.attn.qkv'],
            ),
            convolutional(),
            ValueError,
            'not in this network at all',
        ),
        (
            dict(
                type='mmdfkd.QKVRelationHead',
                taps_student=['backbone.layer4.attn.qkv'],
                taps_teacher=[f'{BLOCK}.attn.qkv'],
            ),
            convolutional(),
            ValueError,
            "layer4.attn.qkv' of the student is no qkv layer .* not in this network at all",
        ),
        # What has a width divisible by 3 need not be queries, keys and values: tokens between
        # blocks (24 channels), the projection behind an attention, a map of a CNN (24 channels).
        (
            dict(type='mmdfkd.QKVRelationHead', taps_student=[BLOCK]),
            None,
            ValueError,
            rf"'{BLOCK}' of the student is no qkv layer .*\['backbone\.layers\.0\.attn\.qkv', ",
        ),
        (
            dict(
                type='mmdfkd.QKVRelationHead',
                taps_student=[f'{BLOCK}.attn.qkv'],
                taps_teacher=[f'{BLOCK}.attn.proj'],
            ),
            None,
            ValueError,
            rf"'{BLOCK}\.attn\.proj' of the teacher is no qkv layer",
        ),
        (
            dict(
                type='mmdfkd.QKVRelationHead',
                taps_student=['backbone.layer3'],
                taps_teacher=[f'{BLOCK}.attn.qkv'],
                prefix_tokens=(0, 1),
            ),
            convolutional(base=6),
            ValueError,
            "'backbone.layer3' of the student .* not in this network at all",
        ),
        # Nor are they if their heads are named.
        (
            dict(type='mmdfkd.AttentionHead', taps_student=[BLOCK], rows='mean', num_heads=(2, 2)),
            None,
            ValueError,
            rf"'{BLOCK}' of the student is no qkv layer",
        ),
        (
            dict(
                type='mmdfkd.CrossArchitectureHead',
                tap_student='backbone.layer3',
                tap_teacher=BLOCK,
                tap_qkv=BLOCK,
                num_heads=2,
            ),
            convolutional(base=6),
            ValueError,
            rf"'{BLOCK}' of the teacher is no qkv layer",
        ),
        # Tokens that are no grid of the image without so many prefix tokens.
        (
            dict(type='mmdfkd.ManifoldHead', taps_student=[BLOCK], prefix_tokens=(0, 1)),
            None,
            ValueError,
            "student's backbone.layers.1 has 17 tokens; without 0 prefix tokens they are no grid",
        ),
        # Two grids without a common one of that size.
        (
            dict(type='mmdfkd.ManifoldHead', taps_student=[BLOCK], merge=3),
            None,
            ValueError,
            'divisors',
        ),
        # A vector has no patches.
        (dict(type='mmdfkd.ManifoldHead'), None, ValueError, 'tap blocks'),
        (
            dict(type='mmdfkd.LogitHead', name='other'),
            convolutional(4),
            ValueError,
            '5 classes and the student 4',
        ),
    ],
)
def test_it_is_refused_when_it_is_built(head, student, error, message):
    with pytest.raises(error, match=message):
        build(head, student)
