"""The adapter runs a classifier as mmpretrain itself does."""

import pytest
import torch
import torch.nn.functional as F
import toy

from mmdfkd.adapters import Normalizer, Targets, build_adapter


@pytest.fixture(scope='module')
def adapter():
    net = toy.build(toy.classifier_model(), scope='mmpretrain')
    return build_adapter(net, Normalizer.from_config(toy.whole(toy.classifier_model())))


@torch.no_grad()
def test_logits_and_votes_are_mmpretrains_own(adapter):
    assert adapter.family == 'classifier' and adapter.num_classes == 5
    pixels = toy.images(3, 32)
    bgr = [(image * 255).round().byte().flip(0) for image in pixels]
    inputs = adapter.net.data_preprocessor(dict(inputs=bgr), False)['inputs']
    memory = adapter.encode(pixels)
    assert adapter.propose(memory) is None
    logits = adapter.answer(memory).logits
    expected = adapter.net.head.layers(adapter.net.backbone(inputs)[-1])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    scores = torch.stack([s.pred_score for s in adapter.net.predict(inputs)])
    torch.testing.assert_close(adapter.class_votes(memory), scores, atol=1e-5, rtol=1e-4)


def test_target_loss_is_the_cross_entropy_of_each_image(adapter):
    pixels = toy.images(3, 32).requires_grad_()
    labels = torch.tensor([0, 4, 2])
    losses = adapter.target_loss(adapter.encode(pixels), Targets(labels=labels))
    logits = adapter.answer(adapter.encode(pixels)).logits.double()
    expected = torch.logsumexp(logits, 1) - logits[torch.arange(3), labels]
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)
    (grad,) = torch.autograd.grad(losses[1], pixels)
    assert grad[1].abs().sum() > 0 and grad[0].eq(0).all() and grad[2].eq(0).all()


def test_taps(adapter):
    memory = adapter.encode(toy.images(2, 32), ['backbone.layers.0', 'backbone.layers.1'])
    first = memory.taps['backbone.layers.0']
    assert first.shape == (2, 17, 24)
    assert F.mse_loss(first, memory.taps['backbone.layers.1']) > 0
    assert not any(m._forward_hooks for m in adapter.net.modules())


def _with_head(**head):
    model = toy.classifier_model()
    model['head'] = head
    return toy.plain(model, 'mmpretrain')


def _vig():
    return _with_head(
        type='VigClsHead', num_classes=5, in_channels=24, hidden_dim=8, act_cfg=dict(type='GELU')
    )


@pytest.mark.parametrize(
    ('make', 'found'),
    [
        (
            lambda: _with_head(type='MultiLabelLinearClsHead', num_classes=5, in_channels=24),
            'The MultiLabelLinearClsHead of the classifier gives several labels an image',
        ),
        (
            lambda: _with_head(
                type='CSRAClsHead', num_classes=5, in_channels=24, num_heads=1, lam=0.1
            ),
            'The CSRAClsHead of the classifier gives several labels an image',
        ),
        (
            lambda: _with_head(type='MultiLabelClsHead'),
            'The MultiLabelClsHead of the classifier gives several labels an image',
        ),
        (
            lambda: _with_head(
                type='MultiTaskHead',
                task_heads=dict(a=dict(type='LinearClsHead', num_classes=5, in_channels=24)),
            ),
            'The MultiTaskHead of the classifier gives several tasks at once',
        ),
        (
            lambda: _with_head(type='ConformerHead', num_classes=5, in_channels=[24, 24]),
            'The ConformerHead of the classifier gives two answers',
        ),
        (
            lambda: _with_head(type='LinearRegressionHead', num_classes=5, in_channels=24),
            'The LinearRegressionHead of the classifier gives numbers',
        ),
        (_vig, 'The VigClsHead of the classifier has no num_classes'),
    ],
    ids=['linear', 'csra', 'multi-label', 'multi-task', 'conformer', 'regression', 'vig'],
)
def test_heads_that_answer_otherwise_are_refused(make, found):
    normalizer = Normalizer.from_config(toy.whole(toy.classifier_model()))
    with pytest.raises(ValueError, match=f'^{found}.*Supported is a head with num_classes'):
        build_adapter(make(), normalizer)


def test_a_head_without_a_tensor_is_told_at_its_first_answer():
    class TwoBranches(torch.nn.Linear):
        """Stands for a head of another package."""

        num_classes = 5

        def forward(self, feats):
            return (super().forward(feats[-1]),) * 2

    net = toy.plain(toy.classifier_model(), 'mmpretrain')
    net.head = TwoBranches(24, 5)
    adapter = build_adapter(net, Normalizer.from_config(toy.whole(toy.classifier_model())))
    with pytest.raises(TypeError, match='The TwoBranches of the classifier gives a tuple'):
        adapter.class_votes(adapter.encode(toy.images(1, 32)))
