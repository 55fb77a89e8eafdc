"""Figures of synthetic images, against numbers worked out by hand."""

import math

import pytest
import torch
import toy

from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.evaluation import (
    CollapseLimits,
    Seen,
    describe_quality,
    find_collapse,
    near_duplicates,
    quality_of,
    see,
)
from mmdfkd.evaluation.image_quality import (
    attention_taps,
    class_attention,
    class_coverage,
    concentration,
    confidence_histogram,
    thumbnails_of,
)
from mmdfkd.synthesis import SynthesisContext


def test_histogram():
    values = torch.tensor([0.0, 0.05, 0.1, 0.55, 0.999, 1.0])
    assert confidence_histogram(values) == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert confidence_histogram(values, 2) == [3, 3]


def test_coverage_is_relative_to_an_even_draw():
    one, two = torch.zeros(2, dtype=torch.long), torch.tensor([0, 1])
    # Two even draws of two classes show 1.5 of them.
    assert class_coverage(one, 2) == pytest.approx(1 / 1.5)
    assert class_coverage(two, 2) == 1
    generator = torch.Generator().manual_seed(0)
    for count in (20, 200, 2000):
        labels = torch.randint(0, 100, (count,), generator=generator)
        assert class_coverage(labels, 100) == pytest.approx(1, abs=0.1)
        assert class_coverage(labels % 10, 100) < 0.6
    assert class_coverage(labels[:0], 5) == 0


def test_concentration():
    uniform, single = torch.full((1, 2, 8), 1 / 8), torch.eye(8)[None, :2]
    half = torch.tensor([0.5, 0.5] + [0.0] * 6).expand(1, 2, 8)
    found = concentration(torch.cat([uniform, single, half]))
    expected = torch.tensor([0.0, 1.0, 1 - math.log(2) / math.log(8)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_near_duplicates_are_copies_and_nothing_else():
    images = toy.images(8, seed=1)
    copies = (images[:2] + 0.01 * torch.randn(images[:2].shape)).clamp(0, 1)
    brighter = images[2:3] * 0.5 + 0.5
    found = near_duplicates(thumbnails_of(torch.cat([images, copies, brighter])))
    assert found.tolist() == [True, True] + [False] * 6 + [True, True, False]
    # Noise is all grey at a distance, and no copy of other noise; blank images are copies.
    noise = torch.rand(6, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert not near_duplicates(thumbnails_of(noise)).any()
    blank = torch.tensor([0.5, 0.501, 0.8]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    assert near_duplicates(blank).tolist() == [True, True, False]


def _adapter(model, seed, scope):
    net = toy.build(model, seed, scope)
    return build_adapter(net, Normalizer(toy.MEAN, toy.STD, 'rgb'))


def test_a_classifier_is_asked():
    """Every figure against the network's own answers in float64; nothing is left behind."""
    teacher, student, verifier = (
        _adapter(toy.classifier_model(), seed, 'mmpretrain') for seed in (0, 1, 2)
    )
    student.net.train()
    images = (toy.images(7, 32) * 255).round().to(torch.uint8)
    seen = see(images, teacher, student, verifier, batch=3)
    assert student.net.training and all(p.grad is None for p in student.net.parameters())

    student.net.eval()
    pixels = images.float() / 255
    answers = [
        a.answer(a.encode(pixels)).logits.double().softmax(-1).detach()
        for a in (teacher, student, verifier)
    ]
    p, q, r = answers
    torch.testing.assert_close(seen.votes.double(), p, rtol=1e-4, atol=1e-5)
    kl = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(seen.divergence.double(), kl, rtol=1e-3, atol=1e-4)
    assert seen.verified.tolist() == (p.argmax(1) == r.argmax(1)).float().tolist()
    assert seen.thumbnails.shape == (7, 3, 16, 16)

    # The class token's row of the last block, from the module's own queries and keys.
    ctx = SynthesisContext(pixels, Targets(), teacher, taps=attention_taps(teacher))
    attention, grid = class_attention(ctx)
    assert attention.shape == (7, 2, 16) and grid == (4, 4)
    tapped = ctx.teacher_memory.taps['backbone.layers.1.attn.qkv'].detach()
    query, key, _ = tapped.double().unflatten(-1, (3, 2, 12)).permute(2, 0, 3, 1, 4)
    rows = (query[:, :, :1] @ key[:, :, 1:].transpose(-2, -1) / 12**0.5).softmax(-1).squeeze(2)
    torch.testing.assert_close(attention.double(), rows, rtol=1e-3, atol=1e-5)
    entropy = -(rows * rows.log()).sum(-1).mean(1)
    torch.testing.assert_close(
        seen.concentration.double(), 1 - entropy / math.log(16), rtol=1e-3, atol=1e-4
    )


def test_a_detector_is_asked():
    teacher, student = (_adapter(toy.detector_model(), seed, 'mmdet') for seed in (0, 1))
    images = toy.images(3)
    seen = see(images, teacher, student)
    assert seen.votes.shape == (3, 3) and seen.verified is None
    assert (seen.divergence > 0).all() and (
        (seen.concentration >= 0) & (seen.concentration < 1)
    ).all()
    assert see(images, teacher, teacher).divergence.abs().max() < 1e-5


@pytest.mark.parametrize('kind', ['deformable', 'detr', 'gfl'])
def test_other_detectors_are_asked(kind):
    """With queries, and dense ones without proposals."""
    model = toy.one_stage_model(kind) if kind == 'gfl' else toy.detr_model(kind)
    teacher, student = (_adapter(model, seed, 'mmdet') for seed in (0, 1))
    seen = see(toy.images(2, 64), teacher, student)
    assert seen.votes.shape == (2, 3) and ((seen.votes >= 0) & (seen.votes <= 1)).all()
    assert seen.divergence.shape == (2,) and (seen.divergence > 0).all()
    assert quality_of(seen)['images'] == 2


def _seen(votes, thumbnails=None, divergence=None):
    votes = torch.as_tensor(votes)
    if thumbnails is None:
        thumbnails = torch.rand(len(votes), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return Seen(votes, divergence, None, None, thumbnails)


def _healthy(count=12, classes=4):
    generator = torch.Generator().manual_seed(1)
    votes = torch.eye(classes)[torch.arange(count) % classes]
    return votes * torch.rand(count, 1, generator=generator).add(0.2).div(1.2)


def test_quality_of():
    quality = quality_of(
        _seen(_healthy(), divergence=torch.full((12,), 0.5)), torch.tensor([1.0, 2.0])
    )
    assert (quality['classes'], quality['coverage'], quality['duplicates']) == (4, 1.0, 0.0)
    assert (quality['divergence_new'], quality['divergence_old']) == (0.5, 1.5)
    assert sum(quality['histogram']) == quality['images'] == 12
    low, mean, high = (quality[f'confidence{end}'] for end in ('_low', '', '_high'))
    assert low < mean < high
    assert quality['concentration'] is None and quality['verified'] is None
    line = describe_quality(quality, 4)
    assert '4 of 4 classes in 12 images' in line and 'KL(teacher || student) 0.5' in line
    assert find_collapse(quality, CollapseLimits()) == {}


def test_every_collapse_is_named():
    limits, healthy = CollapseLimits(), _healthy()

    def kinds(seen, old=None):
        return find_collapse(quality_of(seen, old), limits)

    one_class = torch.zeros(12, 20)
    one_class[:, 3] = healthy.amax(1)
    found = kinds(_seen(one_class))
    assert set(found) == {'coverage'} and 'names 1 classes in 12 images' in found['coverage']
    same = torch.rand(1, 3, 4, 4).expand(12, 3, 4, 4)
    assert set(kinds(_seen(healthy, same))) == {'duplicates'}
    # All alike and unsure; where it is sure of all of them, that is what they were made for.
    flat = torch.eye(4)[torch.arange(12) % 4]
    assert set(kinds(_seen(flat * 0.3))) == {'confidence'}
    assert kinds(_seen(flat * 0.99)) == {}
    learned = _seen(healthy, divergence=torch.full((12,), 1e-3))
    assert set(kinds(learned, torch.tensor([0.2]))) == {'divergence'}
    assert kinds(learned, torch.tensor([2e-3])) == {}
    assert kinds(learned, torch.tensor([2e-3, 2e-3, 9.0])) == {}, 'one outlier among the old'
    # Too few images say nothing.
    assert kinds(_seen(flat[:4] * 0.3)) == {}


def test_limits_are_shares():
    with pytest.raises(ValueError, match='CollapseLimits: coverage is from 0 to 1, got 3'):
        CollapseLimits(coverage=3)
