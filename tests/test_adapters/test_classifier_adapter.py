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
