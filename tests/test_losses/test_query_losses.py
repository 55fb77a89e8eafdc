"""Losses of paired queries against float64 references written from the equations."""

import itertools
import math

import numpy as np
import pytest
import torch

from mmdfkd.losses import (
    foreground,
    generalized_iou,
    query_box_loss,
    query_class_loss,
    query_cost,
)

RNG = torch.Generator().manual_seed(0)


def logits(*shape):
    return torch.randn(shape, generator=RNG, dtype=torch.float64) * 2


def boxes(*shape):
    """Centres in the image, sides up to a third of it."""
    raw = torch.rand((*shape, 4), generator=RNG, dtype=torch.float64)
    return torch.cat([0.2 + 0.6 * raw[..., :2], 0.05 + 0.3 * raw[..., 2:]], -1)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def softmax(row):
    e = np.exp(np.asarray(row) - max(row))
    return e / e.sum()


def giou(a, b):
    """By areas of corners."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b)
    )
    inner = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inner
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inner / union - (hull - union) / hull


@pytest.mark.parametrize('sigmoids', [True, False])
def test_classes(sigmoids):
    own, other, weight = logits(2, 5, 4), logits(2, 5, 4), torch.rand(2, 5, generator=RNG)
    temperature, total = 2.0, 0.0
    for i, j in itertools.product(range(2), range(5)):
        zs, zt = (x[i, j].numpy() / temperature for x in (own, other))
        if sigmoids:
            row = sum(
                q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
                for p, q in zip(map(sigmoid, zs), map(sigmoid, zt), strict=True)
            )
        else:
            p, q = softmax(zs), softmax(zt)
            row = float((q * np.log(q / p)).sum())
        total += float(weight[i, j]) * row
    expected = temperature**2 * total / float(weight.sum())
    found = query_class_loss(own, other, weight, sigmoids, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(query_class_loss(other, other, weight, sigmoids)) == pytest.approx(0, abs=1e-12)

    own.requires_grad_()
    other.requires_grad_()
    query_class_loss(own, other, weight, sigmoids).backward()
    assert own.grad.abs().sum() > 0 and other.grad is None
    assert torch.autograd.gradcheck(
        lambda z: query_class_loss(z, other.detach(), weight, sigmoids),
        own.detach().requires_grad_(),
    )


def test_foreground_is_the_surest_class():
    z = torch.tensor([[0.0, 2.0, -1.0]])
    assert float(foreground(z, True)) == pytest.approx(sigmoid(2))
    assert float(foreground(z, False)) == pytest.approx(softmax([0.0, 2.0, -1.0])[1])
    assert float(foreground(torch.tensor([[0.0, 0.0, 9.0]]), False)) < 0.01


def test_boxes():
    own, other, weight = boxes(3, 4), boxes(3, 4), torch.rand(3, 4, generator=RNG)
    l1 = gious = 0.0
    for i, j in itertools.product(range(3), range(4)):
        a, b, w = own[i, j].tolist(), other[i, j].tolist(), float(weight[i, j])
        l1 += w * sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 4
        gious += w * (1 - giou(a, b))
        assert float(generalized_iou(own[i, j], other[i, j])) == pytest.approx(giou(a, b))
    found = [float(x) for x in query_box_loss(own, other, weight)]
    total = float(weight.sum())
    assert found == pytest.approx([l1 / total, gious / total], rel=1e-6)
    assert [float(x) for x in query_box_loss(own, own, weight)] == pytest.approx([0, 0], abs=1e-9)
    faint = [float(x) for x in query_box_loss(own, other, weight * 1e-6)]
    assert 0 < faint[0] < found[0] / 100
    grads = own.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: query_box_loss(b, other, weight), grads)


@pytest.mark.parametrize('sigmoids', [True, False])
def test_cost_of_every_pair(sigmoids):
    own, other, b_own, b_other = logits(2, 4, 3), logits(2, 5, 3), boxes(2, 4), boxes(2, 5)
    found = query_cost(own, b_own, other, b_other, sigmoids, (1.5, 5.0, 2.0))
    assert found.shape == (2, 4, 5)
    for n, q, p in itertools.product(range(2), range(4), range(5)):
        zs, zt = own[n, q].tolist(), other[n, p].tolist()
        if sigmoids:
            cls = -sum(
                sigmoid(t) * math.log(sigmoid(s)) + sigmoid(-t) * math.log(sigmoid(-s))
                for s, t in zip(zs, zt, strict=True)
            )
        else:
            cls = -float((softmax(zt) * np.log(softmax(zs))).sum())
        a, b = b_own[n, q].tolist(), b_other[n, p].tolist()
        l1 = sum(abs(x - y) for x, y in zip(a, b, strict=True))
        assert float(found[n, q, p]) == pytest.approx(1.5 * cls + 5 * l1 - 2 * giou(a, b), rel=1e-5)


def test_half_precision_and_nothing_to_compare():
    own = boxes(2, 3).bfloat16().requires_grad_()
    flat = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    for value in query_box_loss(own, flat, torch.ones(2, 3)):
        assert value.dtype == torch.float32 and torch.isfinite(value)
    for weight in (torch.zeros(2, 3), torch.zeros(2, 0)):
        part = own[:, : weight.shape[1]]
        value = sum(query_box_loss(part, part.detach(), weight))
        z = part.sum() * torch.ones(2, weight.shape[1], 3)
        value = value + query_class_loss(z, z.detach() + 1, weight, True)
        (grad,) = torch.autograd.grad(value, own)
        assert value.item() == 0 and not grad.any()
    with pytest.raises(ValueError, match='same queries'):
        query_box_loss(own, flat[:1], torch.ones(2, 3))


@pytest.mark.parametrize('sigmoid', [True, False])
def test_classes_fade_out_with_the_evidence(sigmoid):
    """As boxes do: queries none of which the teacher sees anything at do not count in full."""
    torch.manual_seed(0)
    z_s, z_t = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    whole = query_class_loss(z_s, z_t, torch.ones(6), sigmoid)
    for weight, share in ((1.0, 1.0), (2e-3, 1.0), (1e-4, 0.1), (1e-6, 1e-3)):
        found = query_class_loss(z_s, z_t, torch.full((6,), weight), sigmoid)
        assert float(found) == pytest.approx(share * float(whole), rel=1e-5)
