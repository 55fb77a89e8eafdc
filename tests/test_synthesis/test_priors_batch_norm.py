"""Statistics of batch norms, against a reference in float64."""

import numpy as np
import pytest
import torch
from prior_nets import teacher
from synthesis_nets import detector
from torch import nn

from mmdfkd.adapters import Targets
from mmdfkd.synthesis import BatchNormPrior, SynthesisContext
from mmdfkd.synthesis.priors.batch_norm import batch_norm_distance, channel_moments
from mmdfkd.synthesis.priors.parts import batch_norms

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def context(net, prior: BatchNormPrior, images: torch.Tensor = IMAGES) -> SynthesisContext:
    return SynthesisContext(images, Targets(), net, taps=prior.taps(net))


def test_moments():
    rng = np.random.default_rng(0)
    maps, rows = rng.standard_normal((4, 3, 5, 6)) * 3 + 100, rng.standard_normal((4, 2))
    found = channel_moments([torch.from_numpy(maps), torch.from_numpy(rows)]).numpy()
    expected = [maps.mean((0, 2, 3)), rows.mean(0), maps.var((0, 2, 3)), rows.var(0)]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-12)
    twice = channel_moments([torch.from_numpy(np.concatenate([m, m])) for m in (maps, rows)])
    np.testing.assert_allclose(twice.numpy(), found)


def test_distance():
    rng = np.random.default_rng(0)
    mean, stored = rng.standard_normal((2, 7))
    variance, stored_variance = rng.random((2, 7)) + 0.1
    arguments = [torch.from_numpy(t) for t in (mean, variance, stored, stored_variance)]
    unit = stored_variance + stored_variance.mean() / 100
    squares = (mean - stored) ** 2 + (np.sqrt(variance) - np.sqrt(stored_variance)) ** 2
    found = batch_norm_distance(*arguments)
    assert found.item() == pytest.approx(np.sqrt((squares / unit).mean()), rel=1e-9)
    norms = np.linalg.norm(mean - stored) + np.linalg.norm(variance - stored_variance)
    assert batch_norm_distance(*arguments, published=True).item() == pytest.approx(norms)
    # As wide again, and in other units: the same; the published form is neither.
    wide = batch_norm_distance(*(t.repeat(2) for t in arguments))
    assert wide.item() == pytest.approx(found.item())
    scaled = [t * f for t, f in zip(arguments, (3, 9, 3, 9), strict=True)]
    assert batch_norm_distance(*scaled).item() == pytest.approx(found.item())
    # One deviation off everywhere.
    one = batch_norm_distance(torch.full((5,), 2.0), torch.ones(5), torch.ones(5), torch.ones(5))
    assert one.item() == pytest.approx(1, rel=0.01)
    assert torch.autograd.gradcheck(
        lambda m, v: batch_norm_distance(m, v, *arguments[2:]),
        [t.requires_grad_() for t in arguments[:2]],
    )
    # A constant channel, and agreement: the gradient is finite.
    flat = torch.zeros(3, requires_grad=True)
    batch_norm_distance(flat, flat * 0, torch.zeros(3), torch.zeros(3)).backward()
    assert torch.isfinite(flat.grad).all()


def test_prior_sees_what_enters_the_layers():
    """The reference catches the layers' inputs by hooks of its own."""
    net = teacher('resnet')
    caught = []
    norms = [m for m in net.net.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(lambda m, a: caught.append((m, a[0]))) for m in norms]
    net.encode(IMAGES)
    for handle in handles:
        handle.remove()
    assert len(caught) == 20
    for published in (False, True):
        distances = {}
        for layer, x in caught:
            x = x.double()
            moments = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            stored = layer.running_mean, layer.running_var
            distances[layer] = batch_norm_distance(*moments, *stored, published).item()
        weights = [3.0] + [1.0] * 19
        expected = sum(w * distances[m] for w, m in zip(weights, norms, strict=True))
        prior = BatchNormPrior(first_weight=3.0, published=published)
        expected = expected if published else expected / 22
        assert prior(context(net, prior)).item() == pytest.approx(expected, rel=1e-4)


def test_statistics_that_agree_have_no_distance():
    net, prior = teacher('resnet'), BatchNormPrior()
    real = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for module in net.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0
            module.train()
    net.encode(real)
    net.net.eval()
    images = real.clone().requires_grad_()
    near = prior(context(net, prior, images))
    # Stored variances are unbiased, those of the batch are not.
    assert near.item() < 0.2
    assert prior(context(net, prior, real * 0.2)).item() > 2 * near.item()
    (gradient,) = torch.autograd.grad(near, [images])
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_momentum_takes_finished_images_in():
    net, prior = teacher('resnet'), BatchNormPrior(momentum=0.75)
    first, second = context(net, prior), context(net, prior, IMAGES.flip(1) ** 2)
    alone = prior(second)
    prior.finished(first)
    names = [f'{name}:input' for name in batch_norms(net.net)]
    a, b = (channel_moments([c.teacher_memory.taps[n] for n in names]) for c in (first, second))
    torch.testing.assert_close(prior.earlier, a)
    mixed = prior(second)
    assert mixed.item() != pytest.approx(alone.item())
    prior.finished(second)
    torch.testing.assert_close(prior.earlier, 0.75 * a + 0.25 * b)
    # In the state, for a prior that has seen nothing.
    again = BatchNormPrior(momentum=0.75)
    again.load_state_dict(prior.state_dict())
    torch.testing.assert_close(again(second), prior(second), rtol=0, atol=0)
    plain = BatchNormPrior()
    plain.finished(first)
    assert len(plain.earlier) == 0


def test_where_there_is_none():
    prior = BatchNormPrior()
    assert prior.unsuited(teacher('resnet')) is None and prior.unsuited(detector(0)) is None
    assert 'AttentionPrior' in prior.unsuited(teacher('vit'))
    assert 'ContrastivePrior' in prior.unsuited(teacher('swin'))
    ctx = SynthesisContext(IMAGES, Targets(), teacher('resnet'))
    with pytest.raises(ValueError, match='taps'):
        prior(ctx)
    with pytest.raises(ValueError, match='momentum'):
        BatchNormPrior(momentum=1.0)
