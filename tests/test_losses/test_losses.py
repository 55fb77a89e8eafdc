"""Every loss against its equation in float64, and the invariances that its docstring states."""

import math

import pytest
import torch

from mmdfkd.losses import (
    bce_with_soft_targets,
    binary_kl,
    box_delta_loss,
    cosine_distance,
    kl_divergence,
    masked_mimic,
    pkd,
    weighted_mean,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape, grad=False):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def softmax(row):
    exp = [math.exp(v) for v in row]
    return [e / sum(exp) for e in exp]


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


# --- references, written from the equations -------------------------------------------------------


def kl_reference(student, teacher, t):
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s = softmax([v / t for v in s_row])
        p_t = softmax([v / t for v in t_row])
        total += sum(q * (math.log(q) - math.log(p)) for p, q in zip(p_s, p_t, strict=True))
    return t * t * total / len(student)


def pkd_reference(student, teacher, eps):
    n, c, h, w = student.shape
    z = []
    for x in (student, teacher):
        columns = [x[:, k].reshape(-1).tolist() for k in range(c)]
        means = [sum(v) / len(v) for v in columns]
        variances = [
            sum((a - m) ** 2 for a in v) / len(v) for v, m in zip(columns, means, strict=True)
        ]
        extra = eps * sum(variances) / c + 1e-6
        z.append(
            [
                [(a - m) / math.sqrt(var + extra) for a in v]
                for v, m, var in zip(columns, means, variances, strict=True)
            ]
        )
    squares = [
        (a - b) ** 2 for s, t in zip(z[0], z[1], strict=True) for a, b in zip(s, t, strict=True)
    ]
    return sum(squares) / (n * c * h * w) / 2


def mimic_reference(student, teacher, mask, normalize):
    n, c, h, w = student.shape
    error = energy = weight = 0.0
    for b in range(n):
        for y in range(h):
            for x in range(w):
                m = mask[b, 0, y, x].item()
                difference = student[b, :, y, x] - teacher[b, :, y, x]
                error += m * sum(v * v for v in difference.tolist()) / c
                energy += m * sum(v * v for v in teacher[b, :, y, x].tolist()) / c
                weight += m
    return error / energy if normalize else error / weight


def box_reference(student, teacher, weight, beta):
    total = weights = 0.0
    for s, t, w_row in zip(student.tolist(), teacher.tolist(), weight.tolist(), strict=True):
        groups = len(s) // 4
        for k in range(groups):
            w = w_row[k] if groups > 1 else sum(w_row)
            cost = 0.0
            for a, b in zip(s[4 * k : 4 * k + 4], t[4 * k : 4 * k + 4], strict=True):
                d = abs(a - b)
                cost += d * d / (2 * beta) if d < beta else d - beta / 2
            total += w * cost / 4
            weights += w
    return total / weights


# --- equations ------------------------------------------------------------------------------------


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_kl_equation(temperature):
    s, t = rand(5, 7), rand(5, 7)
    expected = kl_reference(s, t, temperature)
    assert kl_divergence(s, t, temperature).item() == pytest.approx(expected, rel=1e-12)
    numel = kl_divergence(s, t, temperature, reduction='numel')
    assert numel.item() == pytest.approx(expected / 7, rel=1e-12)
    rows = kl_divergence(s, t, temperature, reduction='none')
    assert rows.shape == (5,)
    assert rows.mean().item() == pytest.approx(expected, rel=1e-12)


def test_kl_weights_are_a_weighted_mean():
    s, t = rand(4, 3), rand(4, 3)
    doubled = torch.tensor([0, 0, 1, 2, 3, 3])
    weight = torch.tensor([2.0, 1.0, 1.0, 2.0])
    assert torch.isclose(kl_divergence(s, t, weight=weight), kl_divergence(s[doubled], t[doubled]))


def test_kl_gradient_keeps_its_size_with_temperature():
    s = (0.01 * rand(6, 5)).requires_grad_()
    t = 0.01 * rand(6, 5)
    (cold,) = torch.autograd.grad(kl_divergence(s, t, 1.0), s)
    (hot,) = torch.autograd.grad(kl_divergence(s, t, 20.0), s)
    assert (cold - hot).norm() < 0.02 * cold.norm()


def test_soft_bce_and_binary_kl_equations():
    s, t, w = rand(3, 4), rand(3, 4), torch.rand(3, 4, dtype=torch.float64)
    bce = kl = weights = 0.0
    rows = zip(s.flatten().tolist(), t.flatten().tolist(), w.flatten().tolist(), strict=True)
    for a, b, m in rows:
        p, q = sigmoid(a / 2), sigmoid(b / 2)
        cross = -q * math.log(p) - (1 - q) * math.log(1 - p)
        bce += m * cross
        kl += m * (cross + q * math.log(q) + (1 - q) * math.log(1 - q))
        weights += m
    assert bce_with_soft_targets(s, t, 2.0, w).item() == pytest.approx(4 * bce / weights, rel=1e-12)
    assert binary_kl(s, t, 2.0, w).item() == pytest.approx(4 * kl / weights, rel=1e-12)


def test_binary_kl_has_the_gradient_of_soft_bce_and_is_the_two_class_kl():
    s, t = rand(10, grad=True), rand(10)
    (of_kl,) = torch.autograd.grad(binary_kl(s, t), s)
    (of_bce,) = torch.autograd.grad(bce_with_soft_targets(s, t), s)
    assert torch.allclose(of_kl, of_bce, atol=1e-14)
    two = [torch.stack([x, torch.zeros_like(x)], -1) for x in (s, t)]
    assert torch.isclose(binary_kl(s, t), kl_divergence(*two))


@pytest.mark.parametrize('eps', [1e-3, 0.1])
def test_pkd_equation(eps):
    s, t = rand(3, 4, 5, 2), 3 * rand(3, 4, 5, 2) + 1
    assert pkd(s, t, eps).item() == pytest.approx(pkd_reference(s, t, eps), rel=1e-12)


def test_pkd_is_one_minus_correlation():
    s, t = rand(2, 3, 6, 5), rand(2, 3, 6, 5)
    flat = [x.transpose(0, 1).flatten(1) for x in (s, t)]
    correlation = torch.stack(
        [torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(*flat, strict=True)]
    ).mean()
    assert torch.isclose(pkd(s, t, eps=0.0), 1 - correlation, atol=1e-5)


def test_pkd_ignores_scale_and_offset_of_channels():
    t = rand(2, 3, 6, 5)
    scale = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64).view(1, 3, 1, 1)
    assert pkd(scale * t + 3, t, eps=0.0) < 1e-6
    assert pkd(-t, t, eps=0.0).item() == pytest.approx(2, rel=1e-4)


def test_pkd_depends_on_neither_networks_scale_and_offset():
    s, t = rand(2, 3, 6, 5), rand(2, 3, 6, 5)
    a, b, c, d = (torch.rand(1, 3, 1, 1, dtype=torch.float64) + 0.5 for _ in range(4))
    assert torch.isclose(pkd(a * s + b, c * t - d, eps=0.0), pkd(s, t, eps=0.0), rtol=1e-6)


def test_pkd_does_not_blow_up_a_constant_channel():
    t = torch.randn(2, 3, 8, 8)
    t[:, 1] = 5.0 + 1e-6 * torch.randn(2, 8, 8)  # constant but for rounding
    s = t.clone()
    s[:, 1] = 5.0 + 1e-6 * torch.randn(2, 8, 8)
    s.requires_grad_()
    loss = pkd(s, t)
    loss.backward()
    assert loss < 1e-3  # unit-variance noise in one of three channels would give 1 / 3
    assert s.grad[:, 1].abs().max() < 1e-3
    flat = torch.full((2, 3, 4, 4), 7.0, requires_grad=True)
    pkd(flat, torch.full((2, 3, 4, 4), -1.0)).backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize('normalize', [True, False])
def test_mimic_equation(normalize):
    s, t = rand(2, 3, 4, 5), rand(2, 3, 4, 5)
    mask = torch.rand(2, 1, 4, 5, dtype=torch.float64)
    loss = masked_mimic(s, t, mask, normalize=normalize)
    assert loss.item() == pytest.approx(mimic_reference(s, t, mask, normalize), rel=1e-12)


def test_mimic_is_a_share_of_the_teachers_energy():
    t = rand(2, 3, 4, 5)
    mask = torch.rand(2, 1, 4, 5, dtype=torch.float64)
    assert masked_mimic(torch.zeros_like(t), t, mask).item() == pytest.approx(1)
    s = rand(2, 3, 4, 5)
    assert torch.isclose(masked_mimic(100 * s, 100 * t, mask), masked_mimic(s, t, mask))


def test_mimic_of_tokens_has_channels_last():
    s, t = rand(2, 6, 3), rand(2, 6, 3)
    expected = (s - t).square().sum() / t.square().sum()
    assert torch.isclose(masked_mimic(s, t, dim=2), expected)


def test_cosine_equation():
    s, t = rand(2, 5, 3), rand(2, 5, 3)
    mask = torch.rand(2, 5, 1, dtype=torch.float64)
    total = 0.0
    for b in range(2):
        for p in range(5):
            a, c = s[b, p], t[b, p]
            cos = (a @ c / (a @ a).sqrt() / (c @ c).sqrt()).item()
            total += mask[b, p, 0].item() * (1 - cos)
    expected = total / mask.sum().item()
    assert cosine_distance(s, t, mask, dim=2).item() == pytest.approx(expected, rel=1e-12)
    assert torch.isclose(cosine_distance(3 * s, t, mask, dim=2), cosine_distance(s, t, mask, dim=2))


@pytest.mark.parametrize(('width', 'beta'), [(4, 1.0), (12, 1.0), (4, 0.1), (12, 0.1)])
def test_box_equation(width, beta):
    s, t = rand(6, width), rand(6, width)
    weight = torch.rand(6, 3, dtype=torch.float64)
    expected = box_reference(s, t, weight, beta)
    assert box_delta_loss(s, t, weight, beta).item() == pytest.approx(expected, rel=1e-12)


def test_box_compares_only_the_classes_the_teacher_sees():
    s, t = rand(2, 12), rand(2, 12)
    weight = torch.zeros(2, 3)
    weight[0, 2] = 1.0
    loss = box_delta_loss(s, t, weight)
    elsewhere = s.clone()
    elsewhere[0, :8] += 5
    elsewhere[1] -= 5
    assert box_delta_loss(elsewhere, t, weight) == loss
    assert torch.isclose(loss, box_delta_loss(s[:1, 8:], t[:1, 8:], torch.ones(1)))


def test_box_loss_fades_out_with_the_evidence():
    s, t = rand(50, 4), rand(50, 4)
    strong = box_delta_loss(s, t, torch.full((50, 10), 0.01))
    weak = box_delta_loss(s, t, torch.full((50, 10), 1e-7))
    assert torch.isclose(box_delta_loss(s, t, torch.full((50, 10), 0.09)), strong)
    assert weak < 0.01 * strong


# --- invariances ----------------------------------------------------------------------------------


def classes_last(f):
    return lambda s, t: f(s.movedim(1, -1), t.movedim(1, -1))


MAP_LOSSES = {
    'kl': classes_last(kl_divergence),
    'soft_bce': bce_with_soft_targets,
    'binary_kl': binary_kl,
    'pkd': pkd,
    'mimic': masked_mimic,
    'masked': lambda s, t: masked_mimic(s, t, t[:, :1].double().sigmoid()),
    'absolute': lambda s, t: masked_mimic(s, t, t[:, :1].double().sigmoid(), normalize=False),
    'cosine': cosine_distance,
    'box': lambda s, t: box_delta_loss(
        s[:, :4].movedim(1, -1).reshape(-1, 4),
        t[:, :4].movedim(1, -1).reshape(-1, 4),
        t[:, :1].double().sigmoid().flatten(),
    ),
}


@pytest.mark.parametrize('name', MAP_LOSSES)
def test_no_loss_scales_with_batch_or_resolution(name):
    loss = MAP_LOSSES[name]
    s, t = rand(3, 4, 5, 6), rand(3, 4, 5, 6)
    once = loss(s, t)
    assert once > 0.01
    assert torch.isclose(loss(s.repeat(4, 1, 1, 1), t.repeat(4, 1, 1, 1)), once, rtol=1e-12)
    assert torch.isclose(loss(s.repeat(1, 1, 2, 3), t.repeat(1, 1, 2, 3)), once, rtol=1e-12)


@pytest.mark.parametrize('name', ['pkd', 'mimic', 'absolute', 'cosine'])
def test_no_feature_loss_scales_with_width(name):
    s, t = rand(3, 4, 5, 6), rand(3, 4, 5, 6)
    mask = t[:, :1].sigmoid()
    loss = MAP_LOSSES[name]
    if name == 'absolute':
        loss = lambda a, b: masked_mimic(a, b, mask, normalize=False)  # noqa: E731
    wide = loss(s.repeat(1, 3, 1, 1), t.repeat(1, 3, 1, 1))
    assert torch.isclose(wide, loss(s, t), rtol=1e-12)


def test_kl_does_not_scale_with_the_class_count_but_numel_does():
    s, t = rand(4, 5), rand(4, 5)
    # Each class split into three equal ones: the same distributions, seen more finely.
    fine_s, fine_t = s.repeat_interleave(3, 1), t.repeat_interleave(3, 1)
    assert torch.isclose(kl_divergence(fine_s, fine_t), kl_divergence(s, t), rtol=1e-12)
    ratio = kl_divergence(fine_s, fine_t, reduction='numel') / kl_divergence(
        s, t, reduction='numel'
    )
    assert ratio.item() == pytest.approx(1 / 3)


def test_box_loss_does_not_scale_with_the_class_count():
    s, t, w = rand(6, 4), rand(6, 4), torch.rand(6, 1, dtype=torch.float64)
    many = box_delta_loss(s.repeat(1, 5), t.repeat(1, 5), w.repeat(1, 5) / 5)
    assert torch.isclose(many, box_delta_loss(s, t, w), rtol=1e-12)


@pytest.mark.parametrize('name', MAP_LOSSES)
def test_zero_at_agreement_and_no_gradient_to_the_teacher(name):
    t = rand(2, 4, 3, 3, grad=True)
    s = t.detach().clone().requires_grad_()
    loss = MAP_LOSSES[name](s, t)
    if name != 'soft_bce':
        assert loss.abs() < 1e-12
    loss.backward()
    assert t.grad is None
    assert s.grad is not None


@pytest.mark.parametrize('name', MAP_LOSSES)
def test_gradcheck(name):
    s, t = rand(2, 4, 2, 3, grad=True), rand(2, 4, 2, 3)
    assert torch.autograd.gradcheck(lambda x: MAP_LOSSES[name](x, t), (s,))


@pytest.mark.parametrize('name', MAP_LOSSES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_halves_are_finite(name, dtype):
    s = (60 * torch.randn(2, 4, 8, 8)).to(dtype).requires_grad_()
    t = (60 * torch.randn(2, 4, 8, 8)).to(dtype)
    loss = MAP_LOSSES[name](s, t)
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()
    full = MAP_LOSSES[name](s.detach().float(), t.float())
    assert torch.isclose(loss, full, rtol=1e-5)


@pytest.mark.parametrize('name', MAP_LOSSES)
def test_nothing_to_compare_keeps_the_graph(name):
    s = torch.zeros(0, 4, 3, 3, requires_grad=True)
    layer = torch.nn.Conv2d(4, 4, 1)
    loss = MAP_LOSSES[name](layer(s), torch.zeros(0, 4, 3, 3))
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize('loss', [masked_mimic, cosine_distance])
def test_no_weight_anywhere_is_zero_with_a_graph(loss):
    s = rand(2, 3, 4, 4, grad=True)
    out = loss(s, rand(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    out.backward()
    assert out == 0
    assert not s.grad.any()
    boxes = rand(5, 8, grad=True)
    out = box_delta_loss(boxes, rand(5, 8), torch.zeros(5, 2))
    out.backward()
    assert out == 0
    assert not boxes.grad.any()


def test_weights_carry_no_gradient():
    weight = torch.rand(4, requires_grad=True)
    weighted_mean(torch.rand(4, requires_grad=True), weight).backward()
    assert weight.grad is None


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: kl_divergence(torch.zeros(2, 3), torch.zeros(2, 4)), 'one shape'),
        (lambda: kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), 0), 'positive'),
        (lambda: kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), reduction='sum'), 'batchmean'),
        (lambda: binary_kl(torch.zeros(2), torch.zeros(3)), 'one shape'),
        (lambda: pkd(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3)), 'one shape'),
        (lambda: masked_mimic(torch.zeros(1, 2), torch.zeros(1, 3)), 'align'),
        (lambda: cosine_distance(torch.zeros(1, 2), torch.zeros(1, 3)), 'align'),
        (
            lambda: box_delta_loss(torch.zeros(2, 4), torch.zeros(2, 8), torch.ones(2, 2)),
            'reg_class_agnostic',
        ),
        (
            lambda: box_delta_loss(torch.zeros(2, 8), torch.zeros(2, 8), torch.ones(2, 3)),
            '3 classes',
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
