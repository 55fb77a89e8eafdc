"""Priors against independent float64 references, and their invariances."""

import math

import numpy as np
import pytest
import torch
from synthesis_nets import classifier, detector

from mmdfkd.adapters import Targets
from mmdfkd.synthesis import DivergencePrior, SynthesisContext, TargetPrior, TotalVariationPrior
from mmdfkd.synthesis.priors.total_variation import total_variation


def test_total_variation_by_hand():
    """A vertical edge of height 1 over the full image: every row varies by 1, no column does."""
    image = torch.zeros(1, 3, 6, 10)
    image[..., 5:] = 1
    assert total_variation(image).item() == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    x = rng.random((2, 3, 5, 7))
    expected = [
        sum(
            (
                sum(abs(im[c, i + 1, j] - im[c, i, j]) for i in range(4) for j in range(7)) / 7
                + sum(abs(im[c, i, j + 1] - im[c, i, j]) for i in range(5) for j in range(6)) / 5
            )
            / 2
            for c in range(3)
        )
        / 3
        for im in x
    ]
    np.testing.assert_allclose(total_variation(torch.from_numpy(x)).numpy(), expected, rtol=1e-12)


def test_total_variation_is_free_of_batch_and_resolution():
    images = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    one = total_variation(images)
    assert one.shape == (4,)
    torch.testing.assert_close(total_variation(images[1:2]), one[1:2])
    torch.testing.assert_close(total_variation(images.repeat(5, 1, 1, 1))[:4], one)
    # The same picture with every pixel enlarged.
    large = images.repeat_interleave(3, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(total_variation(large), one)
    ctx = SynthesisContext(images, Targets(), teacher=None)
    torch.testing.assert_close(TotalVariationPrior()(ctx), one)


def kl(
    teacher: np.ndarray, student: np.ndarray, temperature: float, masked: bool = True
) -> np.ndarray:
    """``[N]`` divergence of ``[N, C]`` logits, in float64."""
    out = []
    for t, s in zip(
        teacher.astype(float) / temperature, student.astype(float) / temperature, strict=True
    ):
        p, q = np.exp(t - t.max()), np.exp(s - s.max())
        p, q = p / p.sum(), q / q.sum()
        agree = not masked or t.argmax() == s.argmax()
        out.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) if agree else 0.0)
    return np.array(out)


def test_divergence_of_classifiers():
    teacher, student = classifier(0), classifier(1)
    teacher.net.eval(), student.net.eval()
    images = torch.rand(12, 3, 16, 16)
    ctx = SynthesisContext(images, Targets(), teacher, student)
    with torch.no_grad():
        found = DivergencePrior(temperature=2.0)(ctx).numpy()
        t = teacher.answer(teacher.encode(images)).logits.numpy()
        s = student.answer(student.encode(images)).logits.numpy()
    expected = kl(t, s, 2.0)
    assert 0 < (expected > 0).sum() < 12, (
        'some must agree and some must not, or the mask is untested'
    )
    np.testing.assert_allclose(found, -expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        everywhere = DivergencePrior(temperature=2.0, masked=False)(ctx).numpy()
    np.testing.assert_allclose(everywhere, -kl(t, s, 2.0, masked=False), rtol=1e-4, atol=1e-5)
    assert (everywhere < 0).all()


def test_divergence_at_proposals_is_weighted_by_objectness():
    teacher, student = detector(0), detector(1)
    teacher.net.eval(), student.net.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        probe = teacher.propose(teacher.encode(images))
        probe.boxes[1], probe.scores[1] = probe.boxes[1][:0], probe.scores[1][:0]
        ctx = SynthesisContext(images, Targets(), teacher, student, probe)
        found = DivergencePrior()(ctx).numpy()
        rows = kl(ctx.teacher_response.logits.numpy(), ctx.student_response.logits.numpy(), 1.0)
    weight = probe.scores[0].double().numpy()
    assert len(rows) == len(weight) > 1
    np.testing.assert_allclose(found, [-(rows * weight).sum() / weight.sum(), 0.0], rtol=1e-4)


def test_divergence_needs_a_student():
    ctx = SynthesisContext(torch.rand(1, 3, 16, 16), Targets(), classifier(0))
    with pytest.raises(ValueError, match='student'):
        DivergencePrior()(ctx)


def test_target_and_what_is_computed_once(monkeypatch):
    teacher, student = classifier(0), classifier(1)
    teacher.net.eval(), student.net.eval()
    calls = []
    encode = type(teacher).encode
    monkeypatch.setattr(
        type(teacher), 'encode', lambda self, *a: calls.append(self) or encode(self, *a)
    )
    images = torch.rand(3, 3, 16, 16, requires_grad=True)
    labels = torch.tensor([0, 4, 2])
    ctx = SynthesisContext(images, Targets(labels=labels), teacher, student)
    loss = TargetPrior()(ctx) + DivergencePrior()(ctx)
    assert calls.count(teacher) == 1 and calls.count(student) == 1
    logits = teacher.answer(ctx.teacher_memory).logits.detach().double().numpy()
    expected = [math.log(np.exp(row).sum()) - row[k] for row, k in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(TargetPrior()(ctx).detach().numpy(), expected, rtol=1e-5)
    (grad,) = torch.autograd.grad(loss[0], [images])
    assert grad[0].abs().sum() > 0 and grad[1:].abs().sum() == 0, (
        'image-level: no other image is touched'
    )
