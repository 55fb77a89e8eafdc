"""Losses of dense detectors, against the equations in float64."""

import math

import pytest
import torch
from torch import Tensor

from mmdfkd.losses import dense_box_loss, localization_distillation, quality_focal
from mmdfkd.losses.dense import with_moments_of


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


@pytest.mark.parametrize('beta', [0.0, 1.0, 2.0])
def test_quality_focal_is_the_equation(beta):
    z_s, z_t, weight = random(5, 3), random(5, 3, seed=1), random(5, seed=2).abs()
    total = 0.0
    for i in range(5):
        for k in range(3):
            p, q = (1 / (1 + math.exp(-float(z[i, k]))) for z in (z_s, z_t))
            entropy = -q * math.log(p) - (1 - q) * math.log(1 - p)
            total += float(weight[i]) * abs(q - p) ** beta * entropy
    found = quality_focal(z_s, z_t, beta, weight)
    assert float(found) == pytest.approx(total / float(weight.sum()), rel=1e-10)


def test_quality_focal_is_zero_with_finite_gradient_at_agreement():
    z = random(4, 3)
    for beta in (0.5, 1.0):
        own = z.clone().requires_grad_()
        loss = quality_focal(own, z, beta)
        loss.backward()
        assert loss < 1e-100 and own.grad.isfinite().all()


def test_localization_distillation_is_the_equation():
    d_s, d_t, weight = random(4, 4, 6), random(4, 4, 6, seed=1), random(4, seed=2).abs()
    total = 0.0
    for i in range(4):
        for side in range(4):
            p, q = (
                [math.exp(v / 10) / sum(math.exp(u / 10) for u in d[i, side].tolist()) for v in row]
                for d, row in ((d_s, d_s[i, side].tolist()), (d_t, d_t[i, side].tolist()))
            )
            kl = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
            total += float(weight[i]) * 100 * kl / 4
    found = localization_distillation(d_s, d_t, weight)
    assert float(found) == pytest.approx(total / float(weight.sum()), rel=1e-9)


def test_dense_box_loss_of_boxes_by_hand():
    """Half of the union shared; the same; apart, the hull being four times both."""
    own = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 4], [0, 0, 1, 1]], dtype=torch.float64)
    other = torch.tensor([[0.0, 0, 2, 4], [1, 1, 3, 4], [3, 0, 4, 1]], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    expected = (1 * 0.5 + 2 * 0.0 + 1 * (1 + 0.5)) / 4
    assert float(dense_box_loss(own, other, weight)) == pytest.approx(expected, abs=1e-9)


def test_boxes_whose_sides_passed_stay_finite():
    own = torch.tensor([[5.0, 5.0, 3.0, 9.0]], requires_grad=True)
    loss = dense_box_loss(own, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.ones(1))
    loss.backward()
    assert loss.isfinite() and own.grad.isfinite().all()


def test_boxes_fade_out_with_the_evidence():
    """A thousandth of the weight of an object a place is the least that is normalised."""
    own, other = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 4]])
    assert float(dense_box_loss(own, other, torch.tensor([1e-4]))) == pytest.approx(0.05, rel=1e-4)
    sides = random(1, 4, 5), random(1, 4, 5, seed=1)
    full = localization_distillation(*sides, torch.ones(1))
    little = localization_distillation(*sides, torch.full((1,), 1e-4))
    assert float(little) == pytest.approx(0.1 * float(full), rel=1e-6)


def test_moments_become_the_others():
    maps, others = random(3, 4, 5, 6), 3 * random(3, 4, 7, 2, seed=1) + 2
    found = with_moments_of(maps, others)
    places = (0, 2, 3)
    torch.testing.assert_close(found.mean(places), others.mean(places))
    wanted = others.var(places, correction=0)
    torch.testing.assert_close(found.var(places, correction=0), wanted, rtol=5e-3, atol=0)
    flat = torch.ones(1, 2, 3, 3, requires_grad=True)
    with_moments_of(flat, torch.randn(1, 2, 3, 3)).square().sum().backward()
    assert flat.grad.isfinite().all()


def test_maps_of_equal_moments_stay_as_they_are():
    maps = 3 * random(3, 4, 5, 6) + 2
    maps[:, 0] = 1.5  # a channel that does not vary
    torch.testing.assert_close(with_moments_of(maps, maps), maps, rtol=0, atol=1e-12)
    # Also in another order of places and images, which is all that moments do not see.
    other = maps.flip(0, 2)
    torch.testing.assert_close(with_moments_of(maps, other), maps, rtol=0, atol=1e-12)


def test_gradients():
    z, t, weight = random(2, 3).requires_grad_(), random(2, 3, seed=1), torch.ones(2).double()
    assert torch.autograd.gradcheck(lambda x: quality_focal(x, t, 2.0), z)
    d, e = random(2, 4, 3).requires_grad_(), random(2, 4, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: localization_distillation(x, e, weight), d)
    maps = random(2, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: with_moments_of(x, random(2, 2, 2, 2, seed=1)), maps)


def test_nothing_flows_into_the_teacher_and_nothing_is_lost_without_places():
    for shape in ((4, 3), (0, 3)):
        z, t = random(*shape).requires_grad_(), random(*shape, seed=1).requires_grad_()
        sides = z[:, None, :].expand(-1, 4, -1), t[:, None, :].expand(-1, 4, -1)
        boxes = [torch.cat([x, x[:, :1]], 1) for x in (z, t)]
        weight = torch.ones(shape[0])
        total = quality_focal(z, t) + dense_box_loss(*boxes, weight)
        (total + localization_distillation(*sides, weight)).backward()
        assert t.grad is None and z.grad.shape == shape and total.isfinite()


def test_halves_stay_finite():
    z, t = (100 * random(4, 3, seed=s).to(torch.bfloat16) for s in (0, 1))
    assert quality_focal(z, t).isfinite()
    sides = [x[:, None, :].expand(-1, 4, -1) for x in (z, t)]
    assert localization_distillation(*sides, torch.ones(4)).isfinite()


@pytest.mark.parametrize(
    ('call', 'says'),
    [
        (lambda: quality_focal(random(2, 3), random(2, 4)), 'one shape'),
        (lambda: quality_focal(random(2, 3), random(2, 3), -1), 'beta'),
        (
            lambda: localization_distillation(random(2, 4, 3), random(2, 4, 3), torch.ones(2), 0),
            'temperature',
        ),
        (lambda: dense_box_loss(random(2, 4), random(3, 4), torch.ones(2)), 'the same places'),
    ],
)
def test_bad_arguments(call, says):
    with pytest.raises(ValueError, match=says):
        call()
