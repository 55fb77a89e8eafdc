"""Priors of generators: distance of logits, focus and consistency of attention."""

import copy

import pytest
import torch
from prior_nets import teacher

from mmdfkd.adapters import Response, Targets
from mmdfkd.registry import MODELS
from mmdfkd.synthesis.priors import SynthesisContext

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def prior(kind: str, **kwargs):
    return MODELS.build(dict(type=f'mmdfkd.{kind}', **kwargs))


def context(term, mine, other=None, images=IMAGES):
    return SynthesisContext(images, Targets(), mine, other, taps=term.taps(mine))


def rows_by_hand(adapter, name: str, images) -> torch.Tensor:
    """The class token's attention to the patches, head by head, from the layer's own weights."""
    caught = {}
    module = adapter.net.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda _m, a: caught.update(x=a[0]))
    adapter.encode(images)
    handle.remove()
    q, k, _ = module.qkv(caught['x']).double().chunk(3, -1)
    q, k = (x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in (q, k))
    scores = (q[:, :, :1] @ k[:, :, 1:].transpose(-2, -1) / q.shape[-1] ** 0.5)[:, :, 0]
    return scores.softmax(-1)


def test_logit_distance():
    ctx = SynthesisContext(IMAGES[:2], Targets(), teacher=None)
    ctx.teacher_response = Response(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    ctx.student_response = Response(torch.tensor([[0.0, 5.0], [0.0, 0.0]]))
    torch.testing.assert_close(prior('LogitDistancePrior')(ctx), torch.tensor([-2.0, 0.0]))


def test_focus():
    mine, term = teacher('vit'), prior('AttentionFocusPrior', from_depth=0.75)
    wanted = []
    for name in ('backbone.layers.2.attn', 'backbone.layers.3.attn'):
        rows = rows_by_hand(mine, name, IMAGES)
        wanted.append((rows.sum(-1) / (16**0.5 * rows.norm(dim=-1))).mean(1))
    found = term(context(term, mine))
    torch.testing.assert_close(found.double(), sum(wanted) / 2, rtol=1e-5, atol=1e-6)
    assert (found >= 1 / 16**0.5).all() and (found <= 1).all()


def test_consistency():
    mine, other = teacher('vit'), teacher('vit', seed=1)
    term = prior('AttentionConsistencyPrior', from_depth=1.0)
    a, b = (rows_by_hand(n, 'backbone.layers.3.attn', IMAGES).mean(1) for n in (mine, other))
    found = term(context(term, mine, other))
    torch.testing.assert_close(
        found.double(), (16 * (a - b)).square().mean(1), rtol=1e-4, atol=1e-6
    )
    assert term(context(term, mine, mine)).abs().max() < 1e-10
    with pytest.raises(ValueError, match='student'):
        term(context(term, mine))
    with pytest.raises(ValueError, match='of the student, and the student has no attention'):
        term(context(term, mine, teacher('resnet')))


@pytest.mark.parametrize('kind', ['AttentionFocusPrior', 'AttentionConsistencyPrior'])
def test_descends_and_leaves_nothing(kind):
    mine, other, term = teacher('vit'), teacher('vit', seed=1), prior(kind)
    for net in (mine.net, other.net):
        net.requires_grad_(False)
    images = IMAGES.clone().requires_grad_()
    value = term(context(term, mine, other, images)).sum()
    (gradient,) = torch.autograd.grad(value, images)
    after = copy.copy(images.detach()) - 1e-2 * gradient / gradient.abs().max()
    assert term(context(term, mine, other, after)).sum() < value
    assert term.unsuited(teacher('resnet')) is not None and term.unsuited(mine) is None
