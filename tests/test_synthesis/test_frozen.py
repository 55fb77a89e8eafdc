"""Frozen networks: gradients pass through, nothing stays, everything is restored."""

import pytest
import torch
from synthesis_nets import detector
from torch import nn

from mmdfkd.synthesis import frozen


def net() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    module[1].eval()
    return module


def test_restores_exactly_and_leaves_no_gradient():
    module = net()
    module(torch.randn(5, 3)).sum().backward()
    grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    modes = [m.training for m in module.modules()]
    wants = [p.requires_grad for p in module.parameters()]
    buffers = {k: v.clone() for k, v in module.state_dict().items()}
    x = torch.randn(5, 3, requires_grad=True)
    with pytest.raises(KeyError), frozen(module):
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
        module(x).square().sum().backward()
        raise KeyError('an error inside must not leave it frozen')
    assert x.grad.abs().sum() > 0
    assert [m.training for m in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == wants
    for p, grad in zip(module.parameters(), grads, strict=True):
        assert (p.grad is None) if grad is None else torch.equal(p.grad, grad)
    assert all(torch.equal(v, buffers[k]) for k, v in module.state_dict().items())


def test_ignores_an_overridden_train():
    class Stubborn(nn.Linear):
        calls = 0

        def train(self, mode=True):
            Stubborn.calls += 1
            return super().train(mode)

    module = Stubborn(2, 2)
    Stubborn.calls = 0
    with frozen(module):
        assert not module.training
    assert module.training
    assert Stubborn.calls == 0


def test_gradients_of_pixels_where_activations_are_recomputed():
    """As mmdet recomputes them, ``torch.autograd.grad`` alone refuses it."""
    plain, spare = detector(0), detector(0)
    spare.net.eval()
    switched = [m for m in spare.net.modules() if hasattr(m, 'with_cp')]
    for module in switched:
        module.with_cp = True
    switched[1].with_cp = False
    before = [m.with_cp for m in switched]

    def gradient(adapter):
        pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        pixels.requires_grad_()
        total = sum(f.square().sum() for f in adapter.encode(pixels).feats)
        return torch.autograd.grad(total, pixels)[0]

    with frozen(plain.net), frozen(spare.net, spare.net):
        assert not any(m.with_cp for m in switched)
        assert torch.equal(gradient(spare), gradient(plain))
    assert [m.with_cp for m in switched] == before
    with pytest.raises(RuntimeError, match='use_reentrant'):
        gradient(spare)
