"""Priors against images that are all alike, and against seams, by references in float64."""

import math

import numpy as np
import pytest
import torch
from prior_nets import teacher
from synthesis_nets import detector

from mmdfkd.adapters import Targets
from mmdfkd.synthesis import (
    BoundaryPreservingPrior,
    ContrastivePrior,
    PatchBoundaryPrior,
    SynthesisContext,
)
from mmdfkd.synthesis.priors.boundary import boundary_preserving
from mmdfkd.synthesis.priors.contrastive import info_nce, random_crops
from mmdfkd.synthesis.priors.embedding import EmbeddingMemory, embedding_layers, image_embedding
from mmdfkd.synthesis.priors.parts import patch_size
from mmdfkd.synthesis.priors.patch_boundary import patch_boundary

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def context(kind: str, prior, images: torch.Tensor = IMAGES, labels=(0, 0, 1, 2), **kwargs):
    net = teacher(kind)
    targets = Targets(labels=torch.tensor(labels))
    return SynthesisContext(images, targets, net, taps=prior.taps(net), **kwargs)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_info_nce():
    rng = np.random.default_rng(0)
    a, p, o = unit(rng, 3, 5), unit(rng, 3, 5), unit(rng, 4, 5)
    expected = 0.0
    for i in range(3):
        candidates = np.exp(np.concatenate([p, o]) @ a[i] / 0.2)
        expected += (-a[i] @ p[i] / 0.2 + math.log(candidates.mean())) / 3
    tensors = [torch.from_numpy(t) for t in (a, p, o)]
    assert info_nce(*tensors, 0.2).item() == pytest.approx(expected, rel=1e-10)
    # Twice as many others of the same kind: the same, where InfoNCE would grow by log 2.
    same = info_nce(tensors[0], tensors[1], tensors[1], 0.2)
    assert same.item() == pytest.approx(
        info_nce(tensors[0], tensors[1], tensors[1][:0], 0.2).item()
    )
    assert info_nce(*(t[:1] for t in tensors[:2]), tensors[2][:0], 0.2).item() == pytest.approx(0)
    assert torch.autograd.gradcheck(
        lambda x, y: info_nce(x, y, tensors[2], 0.2), [t.requires_grad_() for t in tensors[:2]]
    )


def test_crops():
    """The whole area, flipped or not, is the image; a crop is a part of it."""
    x = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = random_crops(x, [rng], (1.0, 1.0))
        flipped = bool(found[0, 0, 0, 0] > 0.5)
        seen.add(flipped)
        torch.testing.assert_close(found, x.flip(-1) if flipped else x, atol=1e-5, rtol=0)
        part = random_crops(x, [np.random.default_rng(seed)], (0.25, 0.25))[0, 0, 0]
        assert (part.max() - part.min()).item() == pytest.approx(0.5, abs=0.06)
    assert seen == {False, True}


@pytest.mark.parametrize('kind', ['vit', 'deit', 'vitdet', 'resnet', 'swin'])
def test_embedding(kind):
    net = teacher(kind)
    layers = embedding_layers(net)
    memory = net.encode(IMAGES, [layer.block for layer in layers])
    found = image_embedding(memory, layers)
    parts = []
    for layer in layers:
        x = memory.taps[layer.block].double()
        x = x.flatten(1, 2) if x.dim() == 4 else x[:, layer.prefix_tokens :]
        assert x.shape[1] == 16
        x = x - x.mean(-1, keepdim=True)
        x = (x / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()).mean(1)
        parts.append(x / x.norm(dim=1, keepdim=True))
    if not layers:
        parts = [memory.feats[-1].double() / memory.feats[-1].double().norm(dim=1, keepdim=True)]
    expected = torch.cat(parts, 1) / math.sqrt(len(parts))
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    assert len(layers) == {'vitdet': 2, 'resnet': 0, 'swin': 0}.get(kind, 3)


def test_contrastive_prior():
    prior = ContrastivePrior(memory=6)
    ctx = context('vit', prior, seed=1, serials=[4, 5, 6, 7], step=3)
    found = prior(ctx)
    layers = embedding_layers(ctx.teacher)
    rngs = [ctx.rng('contrastive-crop', i, 3) for i in range(4)]
    views = random_crops(IMAGES, rngs, (0.25, 1.0))
    whole = image_embedding(ctx.teacher_memory, layers)
    crop = image_embedding(ctx.teacher.encode(views, ctx.taps), layers)
    torch.testing.assert_close(found, info_nce(crop, whole, whole[:0], 0.2))
    later = context('vit', prior, seed=1, serials=[4, 5, 6, 7], step=4)
    assert prior(later).item() != found.item(), 'other crops at another step'
    # Finished images count as others; the newest are kept, and go into the state.
    prior.finished(ctx)
    torch.testing.assert_close(prior(ctx), info_nce(crop, whole, whole, 0.2))
    prior.finished(ctx)
    assert len(prior.memory.embeddings) == 6
    torch.testing.assert_close(prior.memory.embeddings[-4:], whole)
    again = ContrastivePrior(memory=6)
    again.load_state_dict(prior.state_dict())
    torch.testing.assert_close(again(ctx), prior(ctx), rtol=0, atol=0)
    other = context('resnet', prior)
    with pytest.raises(ValueError, match='teacher of the checkpoint'):
        prior(other)


def test_contrast_is_lower_for_images_that_differ():
    prior = ContrastivePrior(crop=(0.8, 1.0))
    same = context('vit', prior, IMAGES[:1].repeat(4, 1, 1, 1))
    colours = torch.zeros(4, 3, 16, 16)
    colours[0, 0], colours[1, 1], colours[2, :, ::4], colours[3, :, :, :8] = 1, 1, 1, 1
    assert prior(context('vit', prior, colours)) < prior(same)


def reference(features, labels, more, more_labels, spread, margin) -> float:
    everyone, classes = np.concatenate([features, more]), np.concatenate([labels, more_labels])
    crowded, straying = [], []
    for i, (a, k) in enumerate(zip(features, labels, strict=True)):
        d = 1 - everyone @ a
        own = [j for j in range(len(classes)) if classes[j] == k]
        others = [j for j in range(len(classes)) if classes[j] != k]
        mean = everyone[own].mean(0)
        mean /= np.linalg.norm(mean)
        if len(own) > 1:
            crowded.append(max(spread - min(d[j] for j in own if j != i), 0))
        if others:
            straying.append(max(margin + 1 - mean @ a - min(d[j] for j in others), 0))
    return sum(np.mean(part) if part else 0 for part in (crowded, straying))


@pytest.mark.parametrize('more', [0, 5])
def test_boundary_preserving(more):
    rng = np.random.default_rng(2)
    features, memory = unit(rng, 6, 3), unit(rng, more, 3)
    labels, more_labels = np.array([0, 0, 0, 1, 1, 2]), rng.integers(0, 4, more)
    arguments = [torch.from_numpy(t) for t in (features, labels, memory, more_labels)]
    expected = reference(features, labels, memory, more_labels, 0.5, 0.3)
    assert expected > 0.05
    found = boundary_preserving(*arguments, 0.5, 0.3)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda x: boundary_preserving(x, *arguments[1:], 0.5, 0.3), [arguments[0].requires_grad_()]
    )
    one_class = boundary_preserving(arguments[0], torch.zeros(6), *arguments[2:], 0.5, 0.3)
    assert torch.isfinite(one_class)


@pytest.mark.parametrize('kind', ['vit', 'deit', 'resnet'])
def test_boundary_prior(kind):
    prior = BoundaryPreservingPrior(spread=2.0, margin=2.0, memory=3)
    ctx = context(kind, prior)
    feature = ctx.teacher.net.head.pre_logits(ctx.teacher_memory.feats)
    feature = torch.cat(feature, 1) if kind == 'deit' else feature
    features = (feature / feature.norm(dim=1, keepdim=True)).numpy().astype(float)
    labels, none = np.array([0, 0, 1, 2]), (np.zeros((0, features.shape[1])), np.zeros(0))
    expected = reference(features, labels, *none, 2.0, 2.0)
    assert prior(ctx).item() == pytest.approx(expected, rel=1e-3)
    prior.finished(ctx)
    assert prior.memory.labels.tolist() == [0, 1, 2]
    expected = reference(features, labels, features[1:], labels[1:], 2.0, 2.0)
    assert prior(ctx).item() == pytest.approx(expected, rel=1e-3)
    again = BoundaryPreservingPrior(spread=2.0, margin=2.0, memory=3)
    again.load_state_dict(prior.state_dict())
    assert again(ctx).item() == prior(ctx).item()


def test_boundary_prior_needs_classes():
    prior = BoundaryPreservingPrior()
    assert 'ContrastivePrior' in prior.unsuited(detector(0))
    assert prior.unsuited(teacher('vit')) is None
    ctx = context('vit', prior)
    ctx.targets = Targets()
    with pytest.raises(ValueError, match='target classes'):
        prior(ctx)


def test_memory_of_no_size_and_unknown_classes():
    memory = EmbeddingMemory(0)
    memory.add(torch.ones(2, 3))
    assert memory.rows(torch.ones(1, 3)).shape == (0, 3)
    memory = EmbeddingMemory(3)
    memory.add(torch.ones(2, 3))
    memory.add(2 * torch.ones(2, 3), torch.tensor([4, 5]))
    assert memory.embeddings[:, 0].tolist() == [1, 2, 2] and memory.labels.tolist() == [-1, 4, 5]
    with pytest.raises(ValueError, match='size'):
        EmbeddingMemory(-1)


def test_patch_boundary():
    rng = np.random.default_rng(0)
    x = rng.random((2, 3, 8, 12))
    expected = [
        (
            np.mean([(im[c, 4, j] - im[c, 3, j]) ** 2 for c in range(3) for j in range(12)])
            + np.mean(
                [
                    (im[c, i, j] - im[c, i, j - 1]) ** 2
                    for c in range(3)
                    for i in range(8)
                    for j in (4, 8)
                ]
            )
        )
        / 2
        for im in x
    ]
    images = torch.from_numpy(x)
    found = patch_boundary(images, (4, 4))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    # Pixels and patches enlarged, further images: the same. One patch has no border.
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(patch_boundary(large, (8, 8)), found)
    torch.testing.assert_close(patch_boundary(images.repeat(3, 1, 1, 1), (4, 4))[:2], found)
    assert patch_boundary(images[..., :8], (8, 8)).tolist() == [0, 0]
    # A picture of steps inside the patches has no seams.
    steps = torch.zeros(1, 3, 8, 8)
    steps[..., 2:] = 1
    assert patch_boundary(steps, (4, 4)).item() == 0
    assert torch.autograd.gradcheck(lambda t: patch_boundary(t, (4, 4)), (images.requires_grad_(),))


def test_patches_of_teachers():
    prior = PatchBoundaryPrior()
    sizes = {kind: patch_size(teacher(kind).net) for kind in ('vit', 'vitdet', 'swin', 'resnet')}
    assert sizes == {'vit': (4, 4), 'vitdet': (4, 4), 'swin': (2, 2), 'resnet': None}
    assert 'TotalVariationPrior' in prior.unsuited(teacher('resnet'))
    ctx = context('vit', prior)
    assert prior.unsuited(ctx.teacher) is None
    torch.testing.assert_close(prior(ctx), patch_boundary(IMAGES, (4, 4)))
