"""Priors on the teacher's attention, against references in float64."""

import math

import numpy as np
import pytest
import torch
from prior_nets import teacher

from mmdfkd.adapters import Targets
from mmdfkd.models.layers.attention import decomposed_rel_pos
from mmdfkd.synthesis import (
    AttentionPrior,
    InterHeadPrior,
    PatchSimilarityPrior,
    SynthesisContext,
)
from mmdfkd.synthesis.priors.attention_prior import map_distance
from mmdfkd.synthesis.priors.attention_reading import evenly, patch_scores
from mmdfkd.synthesis.priors.inter_head import inter_head_difference
from mmdfkd.synthesis.priors.mixture_maps import mixture_maps
from mmdfkd.synthesis.priors.parts import attention_layers
from mmdfkd.synthesis.priors.patch_similarity import gaussian_entropy, kde_entropy

KINDS = ('vit', 'deit', 'vitdet')


def context(kind: str, prior=None, images: torch.Tensor | None = None, **kwargs):
    net = teacher(kind)
    if images is None:
        images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    taps = [f'{layer.name}:input' for layer in attention_layers(net.net)]
    taps += [layer.qkv for layer in attention_layers(net.net)]
    if prior is not None:
        taps = prior.taps(net)
    return SynthesisContext(images, Targets(), net, taps=tuple(taps), **kwargs)


def full_scores(ctx, layer) -> np.ndarray:
    """Every token's scores with every token, ``[B, h, L, L]``, from the layer's own weights."""
    attention = layer.module
    x = ctx.teacher_memory.taps[f'{layer.name}:input'].double()
    grid = x.shape[1:3]
    x = x.flatten(1, 2) if x.dim() == 4 else x
    weight, bias = attention.qkv.weight.double(), attention.qkv.bias.double()
    q, k, _ = (x @ weight.t() + bias).chunk(3, -1)
    q, k = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (q, k))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if layer.prefix_tokens == 0:
        tables = (attention.rel_pos_h.double(), attention.rel_pos_w.double())
        scores = scores + decomposed_rel_pos(q, *tables, tuple(grid))
    return scores.numpy()


@pytest.mark.parametrize('kind', KINDS)
def test_scores_are_those_of_the_network(kind):
    with torch.no_grad():
        ctx = context(kind)
        layers = attention_layers(ctx.teacher.net)
        assert [layer.prefix_tokens for layer in layers] == {
            'vit': [1] * 4,
            'deit': [2] * 4,
            'vitdet': [0] * 2,
        }[kind]
        assert [layer.depth for layer in layers][-1] == 1
        for layer in layers:
            whole = full_scores(ctx, layer)[..., layer.prefix_tokens :]
            patches = whole[:, :, layer.prefix_tokens :]
            chosen = evenly(16, 5).numpy()
            assert len(set(chosen)) == 5
            for rows, expected in {
                'mean': patches.mean(2, keepdims=True),
                5: patches[:, :, chosen],
                99: patches,
            }.items():
                found, grid = patch_scores(ctx, layer, rows)
                assert grid == (4, 4)
                np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
            if layer.prefix_tokens:
                found, _ = patch_scores(ctx, layer, 'class')
                np.testing.assert_allclose(found.numpy(), whole[:, :, :1], atol=1e-4)


def test_attention_is_that_of_the_fused_kernel():
    """Softmax of the scores times the values is what enters ``proj``: no term is missing."""
    net = teacher('vitdet')
    layer = attention_layers(net.net)[0]
    images = torch.rand(2, 3, 16, 16)
    ctx = SynthesisContext(images, Targets(), net, taps=(layer.qkv, layer.heads_out))
    with torch.no_grad():
        scores, _ = patch_scores(ctx, layer, 16)
        values = ctx.teacher_memory.taps[layer.qkv].flatten(1, 2).chunk(3, -1)[2]
        values = values.unflatten(-1, (3, -1)).transpose(1, 2)
        out = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(
        out, ctx.teacher_memory.taps[layer.heads_out].flatten(1, 2), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize('kind', KINDS)
def test_attention_prior(kind):
    with torch.no_grad():
        prior = AttentionPrior(from_depth=0.5)
        ctx = context(kind, seed=4, serials=[8, 2, 5])
        layers = [a for a in attention_layers(ctx.teacher.net) if a.depth >= 0.5]
        assert [a.depth for a in layers] == ([0.5, 1.0] if kind == 'vitdet' else [0.5, 0.75, 1.0])
        expected = np.zeros(3)
        for index, layer in enumerate(layers):
            scores = full_scores(ctx, layer)[..., layer.prefix_tokens :]
            rows = scores[:, :, 0] if layer.class_row else scores.mean(2)
            a = np.exp(rows - rows.max(-1, keepdims=True))
            a /= a.sum(-1, keepdims=True)
            for i in range(3):
                g = mixture_maps(ctx.rng('attention-maps', i, index), 3, (4, 4))
                distance = ((a[i] - g) ** 2).mean(-1) / g.var(-1)
                expected[i] += layer.depth * distance.mean()
        expected /= sum(layer.depth for layer in layers)
        np.testing.assert_allclose(prior(ctx).numpy(), expected, rtol=1e-3)


def test_attention_maps_follow_from_seed_and_image_alone():
    prior = AttentionPrior()
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        whole = prior(context('vit', prior, images, seed=1, serials=[3, 4, 5]))
        torch.manual_seed(9)
        one = prior(context('vit', prior, images[1:2], seed=1, serials=[4]))
        torch.testing.assert_close(one, whole[1:2], rtol=1e-4, atol=1e-5)
        again = prior(context('vit', prior, images, seed=1, serials=[3, 4, 5]))
        torch.testing.assert_close(again, whole, rtol=0, atol=0)
        other = prior(context('vit', prior, images, seed=2, serials=[3, 4, 5]))
        assert not torch.allclose(other, whole)


def test_maps_are_the_same_at_any_resolution():
    fine, coarse = (
        mixture_maps(np.random.default_rng(0), 20, (n, n)).reshape(20, n, n) for n in (28, 14)
    )
    np.testing.assert_allclose(fine.sum((1, 2)), 1)
    pooled = fine.reshape(20, 14, 2, 14, 2).sum((2, 4))
    # A narrow hill is not quite the mean over its cell.
    assert abs(pooled - coarse).sum((1, 2)).max() < 0.15
    assert len({tuple(row) for row in coarse.reshape(20, -1)}) == 20
    single = mixture_maps(np.random.default_rng(0), 20, (14, 14), components=1)
    assert single.max(-1).mean() > coarse.reshape(20, -1).max(-1).mean(), 'one hill is steeper'


def test_map_distance_is_free_of_resolution():
    rng = np.random.default_rng(0)
    a, g = rng.random((2, 4, 16)) ** 3
    a, g = (torch.from_numpy(t / t.sum(-1, keepdims=True)) for t in (a, g))
    one = map_distance(a, g)
    large = [t.view(4, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2) / 4 for t in (a, g)]
    torch.testing.assert_close(map_distance(*(t.flatten(1) for t in large)), one)
    torch.testing.assert_close(map_distance(torch.full_like(g, 1 / 16), g), torch.ones_like(one))
    assert map_distance(g, g).abs().max() == 0
    assert torch.autograd.gradcheck(lambda t: map_distance(t, g), (a.requires_grad_(),))


def cosines(tokens: np.ndarray) -> np.ndarray:
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    return unit @ unit.swapaxes(-1, -2)


@pytest.mark.parametrize(('count', 'width'), [(9, 4), (5, 12)])
def test_gaussian_entropy(count, width):
    x = np.random.default_rng(0).standard_normal((3, count, width))
    variance = cosines(x).reshape(3, -1).var(-1)
    expected = 0.5 * np.log(2 * math.pi * math.e * (variance + 1e-6))
    tokens = torch.from_numpy(x)
    found = gaussian_entropy(tokens)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    # Every token enlarged to several, lengths changed, channels of zeros: nothing changes.
    torch.testing.assert_close(gaussian_entropy(tokens.repeat_interleave(4, 1)), found)
    scaled = tokens * torch.rand(3, count, 1, dtype=torch.float64)
    torch.testing.assert_close(gaussian_entropy(scaled), found)
    wider = torch.cat([tokens, torch.zeros_like(tokens)], -1)
    torch.testing.assert_close(gaussian_entropy(wider), found)
    assert torch.autograd.gradcheck(gaussian_entropy, (tokens.requires_grad_(),))


def test_kde_entropy():
    x = np.random.default_rng(0).standard_normal((3, 7, 5))
    expected = []
    for values in cosines(x).reshape(3, -1):
        places = np.linspace(values.min(), values.max(), 10)
        density = np.array(
            [
                np.mean(np.exp(-((t - values) ** 2) / (2 * 1e-4)) / math.sqrt(2 * math.pi * 1e-4))
                for t in places
            ]
        )
        density += 1e-4
        f = -density * np.log(density)
        expected.append((np.diff(places) * (f[1:] + f[:-1]) / 2).sum())
    np.testing.assert_allclose(kde_entropy(torch.from_numpy(x)).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('form', ['gaussian', 'kde'])
def test_patch_similarity_prior(kind, form):
    prior = PatchSimilarityPrior(form=form)
    with torch.no_grad():
        ctx = context(kind, prior)
        layers = attention_layers(ctx.teacher.net)
        entropy = gaussian_entropy if form == 'gaussian' else kde_entropy
        total = 0
        for layer in layers:
            x = ctx.teacher_memory.taps[layer.heads_out].double()
            x = x.flatten(1, 2) if x.dim() == 4 else x[:, layer.prefix_tokens :]
            assert x.shape[1:] == (16, 24)
            total = total + entropy((x[..., :8] + x[..., 8:16] + x[..., 16:]) / 3)
        torch.testing.assert_close(prior(ctx).double(), -total / len(layers), rtol=1e-3, atol=1e-3)


def test_patches_of_two_kinds_have_more_entropy_than_of_one():
    """What is minimised is the negative: it prefers them, and leaves equal patches somehow."""
    one = torch.ones(1, 16, 8) + 0.1 * torch.randn(1, 16, 8)
    two = one.clone()
    two[:, :8] *= -1
    assert gaussian_entropy(two) > gaussian_entropy(one)
    same = torch.ones(1, 16, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(gaussian_entropy(same).sum(), [same])
    assert torch.isfinite(gradient).all()


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    c1, c2 = 1e-4, 9e-4
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    level = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
    return level * (2 * covariance + c2) / (a.var() + b.var() + c2)


def test_inter_head_difference():
    maps = np.random.default_rng(0).standard_normal((2, 3, 4, 9))
    low, high = maps.min(-1, keepdims=True), maps.max(-1, keepdims=True)
    unit = (maps - low) / (high - low)
    expected = [
        np.mean(
            [
                1 - reference_ssim(image[i, r], image[j, r]) ** 2
                for i, j in ((0, 1), (0, 2), (1, 2))
                for r in range(4)
            ]
        )
        for image in unit
    ]
    tensor = torch.from_numpy(maps)
    found = inter_head_difference(tensor)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    # Scaled maps, a finer grid, and heads that agree.
    torch.testing.assert_close(inter_head_difference(7 * tensor - 3), found)
    torch.testing.assert_close(inter_head_difference(tensor.repeat_interleave(4, -1)), found)
    assert inter_head_difference(tensor[:, :1].repeat(1, 3, 1, 1)).abs().max() < 1e-12
    assert torch.autograd.gradcheck(inter_head_difference, (tensor.requires_grad_(),))


@pytest.mark.parametrize('kind', KINDS)
def test_inter_head_prior(kind):
    with torch.no_grad():
        ctx = context(kind)
        layers = attention_layers(ctx.teacher.net)
        total = 0
        for layer in layers:
            scores = full_scores(ctx, layer)[:, :, layer.prefix_tokens :, layer.prefix_tokens :]
            rows = torch.from_numpy(scores[:, :, evenly(16, 6).numpy()])
            total = total + inter_head_difference(rows)
        found = InterHeadPrior(queries=6)(ctx).double()
        torch.testing.assert_close(found, total / len(layers), rtol=1e-3, atol=1e-4)
        after = InterHeadPrior(queries=6, softmax=True)(ctx)
        assert ((after >= 0) & (after <= 1)).all() and not torch.allclose(after.double(), found)


def test_where_there_is_no_map():
    for prior in (AttentionPrior(), PatchSimilarityPrior(), InterHeadPrior()):
        assert 'BatchNormPrior would do' in prior.unsuited(teacher('resnet'))
        reason = prior.unsuited(teacher('swin'))
        assert 'windows' in reason and 'ContrastivePrior' in reason
        assert prior.unsuited(teacher('vit')) is None
        assert prior.taps(teacher('resnet')) == ()
    ctx = SynthesisContext(torch.rand(1, 3, 16, 16), Targets(), teacher('resnet'))
    with pytest.raises(ValueError, match='AttentionPrior does not apply'):
        AttentionPrior()(ctx)
    with pytest.raises(ValueError, match='from_depth'):
        AttentionPrior(from_depth=2)
    with pytest.raises(ValueError, match='form'):
        PatchSimilarityPrior(form='box')
