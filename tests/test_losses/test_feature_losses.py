"""Feature losses against their equations in float64, and what their docstrings state."""

import math

import pytest
import torch

from mmdfkd.losses.channel_map import channel_map_mimic, to_student_channels
from mmdfkd.losses.cross_architecture import (
    deceiver_loss,
    discriminator_loss,
    partially_cross_attention,
)
from mmdfkd.losses.cwd import cwd
from mmdfkd.losses.mgd import mgd
from mmdfkd.losses.random_mask import random_mask
from mmdfkd.losses.simreg import simreg
from mmdfkd.losses.target_aware import target_aware, target_aware_features
from mmdfkd.losses.vitkd import vitkd_generation, vitkd_mimic


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape, grad=False):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def softmax(row):
    exp = [math.exp(v) for v in row]
    return [e / sum(exp) for e in exp]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


# --- references, written from the equations -------------------------------------------------------


def squares_over_batch(a, b):
    """``sum |a - b|^2 / B``, as the releases reduce."""
    return ((a - b) ** 2).sum().item() / len(a)


def target_aware_reference(query, value, teacher, orientation):
    total = count = 0
    for q, v, t in zip(query.tolist(), value.tolist(), teacher.tolist(), strict=True):
        for i, t_i in enumerate(t):
            if orientation == 'paper':
                weights = softmax([dot(q_j, t_i) for q_j in q])
            else:
                weights = softmax([dot(q[i], t_j) for t_j in t])
            for c, wanted in enumerate(t_i):
                out = sum(w * v_j[c] for w, v_j in zip(weights, v, strict=True))
                total, count = total + (out - wanted) ** 2, count + 1
    return total / count


def cwd_reference(student, teacher, t):
    n, c = student.shape[:2]
    total = 0.0
    for b in range(n):
        for k in range(c):
            p_s = softmax([v / t for v in student[b, k].flatten().tolist()])
            p_t = softmax([v / t for v in teacher[b, k].flatten().tolist()])
            total += sum(q * math.log(q / p) for p, q in zip(p_s, p_t, strict=True))
    return t * t * total / (n * c)


def standardized(maps):
    """Channel by channel over batch and places; each variance has a thousandth of their mean."""
    channels = [maps[:, c].flatten().tolist() for c in range(maps.shape[1])]
    means = [sum(x) / len(x) for x in channels]
    variances = [
        sum((v - m) ** 2 for v in x) / len(x) for x, m in zip(channels, means, strict=True)
    ]
    floor = 1e-3 * sum(variances) / len(variances) + 1e-6
    out = maps.clone()
    for c, (mean, variance) in enumerate(zip(means, variances, strict=True)):
        out[:, c] = (maps[:, c] - mean) / math.sqrt(variance + floor)
    return out


def simreg_reference(student, teacher):
    rows = list(zip(student.flatten(0, -2).tolist(), teacher.flatten(0, -2).tolist(), strict=True))
    return sum(
        2 - 2 * dot(s, t) / math.sqrt(dot(s, s)) / math.sqrt(dot(t, t)) for s, t in rows
    ) / len(rows)


def attend_reference(q, k, v):
    d = len(q[0])
    out = []
    for q_i in q:
        weights = softmax([dot(q_i, k_j) / math.sqrt(d) for k_j in k])
        out.append([sum(w * v_j[c] for w, v_j in zip(weights, v, strict=True)) for c in range(d)])
    return out


def cross_reference(student, teacher, replaced, normalize=False):
    n, d = student[0].shape[1:]
    mixed = [
        [
            [
                [(t if m else s) for s, t, m in zip(*row, strict=True)]
                for row in zip(*x, strict=True)
            ]
            for x in zip(s.tolist(), t.tolist(), m.tolist(), strict=True)
        ]
        for s, t, m in zip(student, teacher, replaced, strict=True)
    ]
    attention = relation = attention_energy = relation_energy = 0.0
    batch = len(student[0])
    for b in range(batch):
        own = attend_reference(*(m[b] for m in mixed))
        other = attend_reference(*(t[b].tolist() for t in teacher))
        attention += sum(
            (x - y) ** 2 for u, w in zip(own, other, strict=True) for x, y in zip(u, w, strict=True)
        )
        attention_energy += sum(y * y for row in other for y in row)
        v_s, v_t = student[2][b].tolist(), teacher[2][b].tolist()
        for i in range(n):
            for j in range(n):
                relation += (dot(v_t[i], v_t[j]) - dot(v_s[i], v_s[j])) ** 2 / d
                relation_energy += dot(v_t[i], v_t[j]) ** 2 / d
    if normalize:
        return attention / attention_energy + relation / relation_energy
    return attention / (batch * n * d) + relation / (batch * n * n)


# --- equations ------------------------------------------------------------------------------------


def test_vitkd_is_the_published_sum_at_the_converted_weight():
    layers = [(rand(3, 6, 5), rand(3, 6, 5)) for _ in range(2)]
    published = 3e-5 * sum(squares_over_batch(s, t) for s, t in layers)
    ours = sum(vitkd_mimic(s, t) for s, t in layers) / 2
    assert (3e-5 * 2 * 6 * 5 * ours).item() == pytest.approx(published, rel=1e-12)
    generated, teacher = rand(3, 6, 5), rand(3, 6, 5)
    mask = random_mask(3, 6, 0.5)
    m = mask.double().unsqueeze(-1)
    published = 3e-6 / 0.5 * squares_over_batch(m * generated, m * teacher)
    ours = vitkd_generation(generated, teacher, mask)
    assert (3e-6 * 6 * 5 * ours).item() == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize('ratio', [1 / 8, 1 / 4, 3 / 4])
def test_vitkds_converted_weight_holds_whatever_is_hidden(ratio):
    """The published sum is divided by the share, ours by the number: of B N r tokens."""
    generated, teacher = rand(3, 8, 5), rand(3, 8, 5)
    mask = random_mask(3, 8, ratio)
    m = mask.double().unsqueeze(-1)
    assert m.mean().item() == ratio
    published = 3e-6 / ratio * squares_over_batch(m * generated, m * teacher)
    ours = vitkd_generation(generated, teacher, mask)
    assert (3e-6 * 8 * 5 * ours).item() == pytest.approx(published, rel=1e-12)


def test_vitkd_in_shares_of_the_teachers_energy():
    s, t = rand(3, 6, 5), rand(3, 6, 5)
    mask = random_mask(3, 6, 0.5)
    error = energy = hidden_error = hidden_energy = 0.0
    for b in range(3):
        for n in range(6):
            for a, y in zip(s[b, n].tolist(), t[b, n].tolist(), strict=True):
                error, energy = error + (a - y) ** 2, energy + y * y
                if mask[b, n]:
                    hidden_error, hidden_energy = hidden_error + (a - y) ** 2, hidden_energy + y * y
    assert vitkd_mimic(s, t, normalize=True).item() == pytest.approx(error / energy, rel=1e-12)
    found = vitkd_generation(s, t, mask, normalize=True).item()
    assert found == pytest.approx(hidden_error / hidden_energy, rel=1e-12)


def test_vitkd_generation_counts_hidden_tokens_only():
    generated, teacher = rand(2, 6, 4), rand(2, 6, 4)
    mask = random_mask(2, 6, 0.5)
    changed = generated.clone()
    changed[~mask] += 7
    assert vitkd_generation(changed, teacher, mask) == vitkd_generation(generated, teacher, mask)
    nothing = generated.clone().requires_grad_()
    vitkd_generation(nothing, teacher, torch.zeros(2, 6, dtype=torch.bool)).backward()
    assert not nothing.grad.any()


def test_mgd_is_the_published_sum_at_the_converted_weight():
    s, t = rand(3, 4, 5, 6), rand(3, 4, 5, 6)
    published = 2e-5 * squares_over_batch(s, t)
    assert (2e-5 * 4 * 5 * 6 * mgd(s, t)).item() == pytest.approx(published, rel=1e-12)
    energy = t.square().mean()
    assert torch.isclose(mgd(s, t, normalize=True), mgd(s, t) / energy, rtol=1e-12)


@pytest.mark.parametrize('orientation', ['paper', 'release'])
def test_target_aware_equation(orientation):
    places = 7 if orientation == 'paper' else 4
    q, v, t = rand(2, places, 3), rand(2, places, 3), rand(2, 4, 3)
    expected = target_aware_reference(q, v, t, orientation)
    assert target_aware(q, v, t, orientation).item() == pytest.approx(expected, rel=1e-12)
    assert target_aware_features(q, v, t, orientation).shape == t.shape
    scaled = target_aware(q, v, t, orientation, scale=0.5).item()
    assert scaled == pytest.approx(target_aware_reference(q / 2, v, t, orientation), rel=1e-12)
    energy = sum(c * c for c in t.flatten().tolist()) / t.numel()
    shared = target_aware(q, v, t, orientation, normalize=True).item()
    assert shared == pytest.approx(expected / energy, rel=1e-12)


def test_target_aware_of_the_paper_ignores_the_order_of_the_students_places():
    q, v, t = rand(2, 6, 3), rand(2, 6, 3), rand(2, 6, 3)
    order = torch.randperm(6)
    assert torch.isclose(target_aware(q[:, order], v[:, order], t), target_aware(q, v, t))
    shuffled = target_aware(q[:, order], v[:, order], t, 'release')
    assert not torch.isclose(shuffled, target_aware(q, v, t, 'release'))


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_cwd_equation(temperature):
    s, t = rand(2, 3, 4, 5), rand(2, 3, 4, 5)
    expected = cwd_reference(s, t, temperature)
    assert cwd(s, t, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_cwd_of_standardised_channels(temperature):
    s, t = (rand(2, 3, 4, 5) * rand(3, 1, 1).exp() + rand(3, 1, 1) for _ in range(2))
    expected = cwd_reference(standardized(s), standardized(t), temperature)
    found = cwd(s, t, temperature, standardize=True).item()
    assert found == pytest.approx(expected, rel=1e-12)


def test_cwd_ignores_offsets_and_if_standardised_scales():
    s, t = rand(2, 3, 4, 5), rand(2, 3, 4, 5)
    offset = rand(2, 3, 1, 1)
    assert torch.isclose(cwd(s + offset, t), cwd(s, t), rtol=1e-10)
    assert not torch.isclose(cwd(2 * s, t), cwd(s, t))
    assert torch.isclose(cwd(2 * s, t, standardize=True), cwd(s, t, standardize=True), rtol=1e-5)


def test_simreg_equation():
    s, t = rand(3, 4, 5), rand(3, 4, 5)
    assert simreg(s, t).item() == pytest.approx(simreg_reference(s, t), rel=1e-12)
    assert torch.isclose(simreg(3 * s, 0.1 * t), simreg(s, t), rtol=1e-12)
    assert simreg(-t, t).item() == pytest.approx(4)


@pytest.mark.parametrize('normalize', [False, True])
def test_partially_cross_attention_equation(normalize):
    student = [rand(2, 4, 3) for _ in range(3)]
    teacher = [rand(2, 4, 3) for _ in range(3)]
    replaced = [torch.rand(2, 4, 3) < 0.5 for _ in range(3)]
    expected = cross_reference(student, teacher, replaced, normalize)
    loss = partially_cross_attention(student, teacher, replaced, normalize)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert partially_cross_attention(teacher, teacher, replaced, normalize) < 1e-15


def test_partially_cross_attention_wholly_replaced_leaves_the_values_relation():
    student = [rand(2, 4, 3, grad=True) for _ in range(3)]
    teacher = [rand(2, 4, 3) for _ in range(3)]
    partially_cross_attention(student, teacher, [torch.ones(2, 4, 3)] * 3).backward()
    assert not student[0].grad.any()
    assert student[2].grad.any()


def test_the_discriminator_and_its_deceiver():
    real, fake = rand(5), rand(5)
    d_t, d_s = ([1 / (1 + math.exp(-v)) for v in x.tolist()] for x in (real, fake))
    expected = sum(-math.log(a) - math.log(1 - b) for a, b in zip(d_t, d_s, strict=True)) / 5
    assert discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-12)
    expected = sum(math.log(1 - b) for b in d_s) / 5
    assert deceiver_loss(fake).item() == pytest.approx(expected, rel=1e-12)


def test_channel_map_with_indices_compares_the_kept_channels():
    s, t, index = rand(2, 5, 3), rand(2, 5, 7), torch.tensor([0, 4, 6])
    error = sum((s[..., c] - t[..., i]).square().sum() for c, i in enumerate(index.tolist())) / 30
    energy = sum(t[..., i].square().sum() for i in index.tolist()) / 30
    assert torch.isclose(channel_map_mimic(s, t, index, normalize=False), error, rtol=1e-12)
    assert torch.isclose(channel_map_mimic(s, t, index), error / energy, rtol=1e-12)
    read = torch.eye(7, dtype=torch.float64)[:, index]
    write = to_student_channels(read)
    assert torch.isclose(channel_map_mimic(s, t, write), channel_map_mimic(s, t, index))


@pytest.mark.parametrize('normalize', [True, False])
def test_channel_map_equation_of_a_dense_map(normalize):
    s, t, write = rand(2, 5, 3), rand(2, 5, 7), rand(3, 7)
    mask = torch.rand(2, 5, 1, dtype=torch.float64)
    error = energy = 0.0
    for n in range(2):
        for p in range(5):
            for c in range(3):
                kept = sum(write[c, i] * t[n, p, i] for i in range(7))
                error += mask[n, p, 0] * (s[n, p, c] - kept) ** 2
                energy += mask[n, p, 0] * kept**2
    expected = error / energy if normalize else error / (3 * mask.sum())
    found = channel_map_mimic(s, t, write, mask, normalize)
    assert torch.isclose(found, expected, rtol=1e-9)


def test_channel_map_is_zero_for_the_teachers_own_coordinates():
    read = rand(7, 3)
    coordinates = rand(2, 5, 3)
    beyond = rand(2, 5, 7)  # what the student has no room for is not asked of it
    beyond = beyond - beyond @ torch.linalg.pinv(read).t() @ read.t()
    teacher = coordinates @ read.t() + beyond
    assert channel_map_mimic(coordinates, teacher, to_student_channels(read)) < 1e-20
    orthonormal = torch.linalg.qr(read).Q
    assert torch.allclose(to_student_channels(orthonormal), orthonormal.t(), atol=1e-12)


@pytest.mark.parametrize(('places', 'ratio', 'hidden'), [(9, 0.5, 5), (196, 0.5, 98), (5, 0.1, 1)])
def test_random_mask_hides_the_same_number_everywhere(places, ratio, hidden):
    mask = random_mask(4, places, ratio)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [hidden] * 4
    assert not torch.equal(*random_mask(2, 196, ratio))


def test_random_mask_by_chance():
    generator = torch.Generator().manual_seed(1)
    mask = random_mask(8, 1000, 0.65, exact=False, generator=generator)
    assert mask.float().mean().item() == pytest.approx(0.65, abs=0.02)
    assert len(set(mask.sum(1).tolist())) > 1
    again = random_mask(8, 1000, 0.65, exact=False, generator=generator.manual_seed(1))
    assert torch.equal(mask, again)


# --- invariances ----------------------------------------------------------------------------------


def half_hidden(s):
    return (torch.arange(s.shape[1]) % 2 == 0).expand(s.shape[:2])


def replaced(s):
    return [(torch.arange(s.shape[1]) % k == 0)[:, None].expand(s.shape) for k in (2, 3, 2)]


TOKEN_LOSSES = {
    'vitkd_mimic': vitkd_mimic,
    'vitkd_generation': lambda s, t: vitkd_generation(s, t, half_hidden(s)),
    'mgd': lambda s, t: mgd(s.mT.unsqueeze(-1), t.mT.unsqueeze(-1)),
    'cwd': lambda s, t: cwd(s.mT.unsqueeze(-1), t.mT.unsqueeze(-1), 4.0),
    'target_aware': lambda s, t: target_aware(s.sin(), s, t, scale=t.shape[-1] ** -0.5),
    'release': lambda s, t: target_aware(s.sin(), s, t, 'release', scale=t.shape[-1] ** -0.5),
    'simreg': simreg,
    'cross': lambda s, t: partially_cross_attention(
        (s, s.sin(), s.cos()), (t, t.sin(), t.cos()), replaced(s)
    ),
    'channel_map': lambda s, t: channel_map_mimic(s, t.repeat(1, 1, 2), torch.arange(s.shape[-1])),
}


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_no_loss_scales_with_batch_or_resolution(name):
    loss = TOKEN_LOSSES[name]
    s, t = rand(3, 6, 5), rand(3, 6, 5)
    once = loss(s, t)
    assert once > 0.01
    assert torch.isclose(loss(s.repeat(4, 1, 1), t.repeat(4, 1, 1)), once, rtol=1e-10)
    assert torch.isclose(loss(s.repeat(1, 3, 1), t.repeat(1, 3, 1)), once, rtol=1e-10)


# Attention's logits depend on the width.
@pytest.mark.parametrize(
    'name', [n for n in TOKEN_LOSSES if n not in ('release', 'cross', 'target_aware')]
)
def test_no_loss_scales_with_width(name):
    loss = TOKEN_LOSSES[name]
    s, t = rand(3, 6, 5), rand(3, 6, 5)
    assert torch.isclose(loss(s.repeat(1, 1, 3), t.repeat(1, 1, 3)), loss(s, t), rtol=1e-10)


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_no_gradient_to_the_teacher(name):
    s, t = rand(2, 6, 5, grad=True), rand(2, 6, 5, grad=True)
    TOKEN_LOSSES[name](s, t).backward()
    assert t.grad is None
    assert s.grad.any()


@pytest.mark.parametrize('name', [n for n in TOKEN_LOSSES if n not in ('release', 'target_aware')])
def test_zero_at_agreement(name):
    t = rand(2, 6, 5)
    assert TOKEN_LOSSES[name](t.clone(), t).abs() < 1e-12


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_gradcheck(name):
    s, t = rand(2, 6, 3, grad=True), rand(2, 6, 3)
    assert torch.autograd.gradcheck(lambda x: TOKEN_LOSSES[name](x, t), (s,))


@pytest.mark.parametrize('name', TOKEN_LOSSES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_halves_are_finite(name, dtype):
    s = (30 * torch.randn(2, 6, 64)).to(dtype).requires_grad_()
    t = (30 * torch.randn(2, 6, 64)).to(dtype)
    if name == 'cross':  # the test's own sines of halves differ
        loss = partially_cross_attention((s,) * 3, (t,) * 3, replaced(s))
    else:
        loss = TOKEN_LOSSES[name](s, t)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_autocast_rounds_nothing(name):
    s, t = torch.randn(2, 6, 24), torch.randn(2, 6, 24)
    with torch.autocast('cpu', torch.bfloat16):
        loss = TOKEN_LOSSES[name](s, t)
    assert torch.isclose(loss, TOKEN_LOSSES[name](s, t), rtol=1e-6)


def test_channel_map_under_autocast():
    s, t, write = torch.randn(2, 6, 3), torch.randn(2, 6, 24), torch.randn(3, 24)
    with torch.autocast('cpu', torch.bfloat16):
        loss = channel_map_mimic(s, t, write)
    assert torch.isclose(loss, channel_map_mimic(s, t, write), rtol=1e-6)


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_nothing_to_compare_keeps_the_graph(name):
    s = torch.zeros(0, 6, 4, requires_grad=True)
    loss = TOKEN_LOSSES[name](s, torch.zeros(0, 6, 4))
    loss.backward()
    assert loss == 0
    assert s.grad is not None


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda x: vitkd_mimic(x(1, 4, 3), x(1, 4, 2)), 'align'),
        (lambda x: vitkd_generation(x(1, 4, 3), x(1, 4, 3), x(1, 3)), 'mask'),
        (lambda x: mgd(x(1, 3, 2, 2), x(1, 3, 4, 4)), 'resize'),
        (lambda x: cwd(x(1, 3, 2, 2), x(1, 3, 4, 4)), 'resize'),
        (lambda x: cwd(x(1, 3, 2), x(1, 3, 2)), 'maps'),
        (lambda x: target_aware(x(1, 4, 3), x(1, 4, 3), x(1, 4, 2)), 'D_T'),
        (lambda x: target_aware(x(1, 4, 3), x(1, 4, 3), x(1, 5, 3), 'release'), 'equal grids'),
        (lambda x: target_aware(x(1, 4, 3), x(1, 4, 3), x(1, 4, 3), 'ours'), 'orientation'),
        (lambda x: simreg(x(2, 3), x(2, 4)), 'align'),
        (
            lambda x: partially_cross_attention(
                [x(1, 4, 3)] * 3, [x(1, 4, 2)] * 3, [x(1, 4, 3)] * 3
            ),
            'one shape',
        ),
        (
            lambda x: partially_cross_attention(
                [x(1, 4, 3)] * 2, [x(1, 4, 3)] * 3, [x(1, 4, 3)] * 3
            ),
            'key and value',
        ),
        (lambda x: channel_map_mimic(x(1, 3), x(1, 5), x(3, 4)), 'another inheritance'),
        (lambda x: channel_map_mimic(x(1, 3), x(1, 5), torch.tensor([0, 1, 5])), 'does not lead'),
        (lambda x: to_student_channels(x(3, 5)), 'd <= D'),
        (lambda x: random_mask(1, 4, 1.0), 'share'),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros)
