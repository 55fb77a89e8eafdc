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


def cosines_by_hand(adapter, name: str, images) -> torch.Tensor:
    """Of a block's output, in float64, the first token's cosine to each of the others."""
    caught = {}
    module = adapter.net.get_submodule(name)
    handle = module.register_forward_hook(lambda _m, _a, out: caught.update(x=out))
    adapter.encode(images)
    handle.remove()
    tokens = caught['x'].double()
    lengths = (tokens * tokens).sum(-1).sqrt()
    products = torch.einsum('bd,bnd->bn', tokens[:, 0], tokens[:, 1:])
    return products / (lengths[:, :1] * lengths[:, 1:])


def test_consistency_of_the_probe():
    """``mean_j (p_T - p_S)^2`` of ``p = F_cls . F_patches``, blocks at the thirds of the depth."""
    mine, other = teacher('vit'), teacher('vit', seed=1)
    term = prior('AttentionConsistencyPrior', of='probe')
    # Of four blocks, those at 1/4, 3/4 and 4/4 (the nearer to a third, two thirds and all).
    blocks = [f'backbone.layers.{i}' for i in (0, 2, 3)]
    assert list(term.taps(mine)) == blocks
    wanted = 0
    for name in blocks:
        a, b = (cosines_by_hand(net, name, IMAGES) for net in (mine, other))
        wanted = wanted + (a - b).square().mean(1) / 3
    found = term(context(term, mine, other))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)
    assert (found > 0).all() and (found <= 4).all()
    assert term(context(term, mine, mine)).abs().max() < 1e-10
    late = prior('AttentionConsistencyPrior', of='probe', from_depth=1.0)
    a, b = (cosines_by_hand(net, blocks[-1], IMAGES) for net in (mine, other))
    torch.testing.assert_close(
        late(context(late, mine, other)).double(),
        (a - b).square().mean(1),
        rtol=1e-4,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="of must be one of .*'probe'.*not 'tokens'"):
        prior('AttentionConsistencyPrior', of='tokens')


def test_consistency_is_of_the_loss_and_its_gradient_goes_through_both():
    """On the images, the term is L_patch; either network alone gives part of its gradient."""
    mine, other = teacher('vit'), teacher('vit', seed=1)
    term = prior('AttentionConsistencyPrior', of='probe', from_depth=1.0)
    for net in (mine.net, other.net):
        net.requires_grad_(False)
    images = IMAGES.clone().requires_grad_()
    name = 'backbone.layers.3'

    def gradient(value):
        return torch.autograd.grad(value.sum(), images)[0].double()

    found = gradient(term(context(term, mine, other, images)))
    a, b = (cosines_by_hand(net, name, images) for net in (mine, other))
    through_teacher = gradient((a - b.detach()).square().mean(1))
    through_student = gradient((a.detach() - cosines_by_hand(other, name, images)).square().mean(1))
    assert through_teacher.abs().max() > 0 and through_student.abs().max() > 0
    torch.testing.assert_close(found, through_teacher + through_student, rtol=1e-3, atol=1e-6)


def test_consistency_without_a_class_token():
    """The mean unit patch stands for it."""
    mine, other = teacher('vitdet'), teacher('vitdet', seed=1)
    term = prior('AttentionConsistencyPrior', of='probe', from_depth=1.0)
    rows = []
    for net in (mine, other):
        tokens = net.encode(IMAGES, ('backbone.blocks.3',)).taps['backbone.blocks.3'].double()
        unit = tokens.flatten(1, 2)
        unit = unit / unit.square().sum(-1, keepdim=True).sqrt()
        rows.append((unit * unit.mean(1, keepdim=True)).sum(-1))
    found = term(context(term, mine, other))
    wanted = (rows[0] - rows[1]).square().mean(1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ('kind', 'settings'),
    [
        ('AttentionFocusPrior', {}),
        ('AttentionConsistencyPrior', {}),
        ('AttentionConsistencyPrior', dict(of='probe')),
    ],
)
def test_descends_and_leaves_nothing(kind, settings):
    mine, other, term = teacher('vit'), teacher('vit', seed=1), prior(kind, **settings)
    for net in (mine.net, other.net):
        net.requires_grad_(False)
    images = IMAGES.clone().requires_grad_()
    value = term(context(term, mine, other, images)).sum()
    (gradient,) = torch.autograd.grad(value, images)
    after = copy.copy(images.detach()) - 1e-2 * gradient / gradient.abs().max()
    assert term(context(term, mine, other, after)).sum() < value
    assert term.unsuited(teacher('resnet')) is not None and term.unsuited(mine) is None
