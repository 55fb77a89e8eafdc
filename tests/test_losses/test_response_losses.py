"""Losses of logits against their equations, row by row in Python floats."""

import math
from functools import partial

import pytest
import torch

from mmdfkd.losses import (
    SparseLabels,
    co_advise,
    dense_labels,
    dist,
    distillation_token,
    dkd,
    hard_label,
    kl_divergence,
    label_cross_entropy,
    nkd,
    noise_adapted_nll,
    noise_matrix,
    sparse_label_ce,
    standardize_logits,
    top_k_labels,
    with_standardized_logits,
)

CLOSE = {'rel': 1e-9, 'abs': 1e-9}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape, grad=False):
    return (2 * torch.randn(*shape, dtype=torch.float64)).requires_grad_(grad)


def softmax(row, t=1.0):
    exp = [math.exp(v / t) for v in row]
    return [e / sum(exp) for e in exp]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def argmax(row):
    return max(range(len(row)), key=row.__getitem__)


def without(row, k):
    return row[:k] + row[k + 1 :]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def rows(*tensors):
    return zip(*(x.tolist() for x in tensors), strict=True)


# --- references -----------------------------------------------------------------------------------


def kl_reference(s, t, tau=1.0):
    return tau**2 * mean(divergence(softmax(b, tau), softmax(a, tau)) for a, b in rows(s, t))


def ce_reference(s, labels):
    return mean(-math.log(softmax(a)[y]) for a, y in rows(s, labels))


def dkd_reference(s, t, labels, alpha, beta, tau):
    total = []
    for a, b, y in rows(s, t, labels):
        p_s, p_t = softmax(a, tau), softmax(b, tau)
        target = divergence([p_t[y], 1 - p_t[y]], [p_s[y], 1 - p_s[y]])
        n_s = [v / (1 - p_s[y]) for v in without(p_s, y)]
        n_t = [v / (1 - p_t[y]) for v in without(p_t, y)]
        total.append(alpha * target + beta * divergence(n_t, n_s))
    return tau**2 * mean(total)


def nkd_reference(s, t, labels, gamma, tau):
    total = []
    for a, b, y in rows(s, t, labels):
        n_s, n_t = softmax(without(a, y), tau), softmax(without(b, y), tau)
        others = sum(q * math.log(p) for p, q in zip(n_s, n_t, strict=True))
        total.append(-softmax(b)[y] * math.log(softmax(a)[y]) - gamma * tau**2 * others)
    return mean(total)


def pearson(x, y):
    m_x, m_y = mean(x), mean(y)
    x, y = [v - m_x for v in x], [v - m_y for v in y]
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(v * v for v in x) * sum(v * v for v in y))


def dist_reference(s, t, a, b, tau):
    p_s = [softmax(v, tau) for v in s.tolist()]
    p_t = [softmax(v, tau) for v in t.tolist()]
    inter = mean(1 - pearson(x, y) for x, y in zip(p_s, p_t, strict=True))
    intra = mean(
        1 - pearson(x, y)
        for x, y in zip(zip(*p_s, strict=True), zip(*p_t, strict=True), strict=True)
    )
    return tau**2 * (a * inter + b * intra)


# --- equations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(('alpha', 'beta', 'tau'), [(1.0, 8.0, 4.0), (0.3, 0.5, 1.0)])
def test_dkd_equation(alpha, beta, tau):
    s, t, y = rand(6, 5), rand(6, 5), torch.randint(5, (6,))
    expected = dkd_reference(s, t, y, alpha, beta, tau)
    assert dkd(s, t, y, alpha, beta, tau).item() == pytest.approx(expected, **CLOSE)
    first = dkd_reference(s, t, torch.tensor([argmax(b) for b in t.tolist()]), alpha, beta, tau)
    assert dkd(s, t, None, alpha, beta, tau).item() == pytest.approx(first, **CLOSE)


def test_dkd_with_the_teachers_doubt_as_beta_is_the_divergence():
    s, t = rand(1, 5), rand(1, 5)
    doubt = 1 - t.div(3).softmax(-1).max().item()
    whole = kl_divergence(s, t, 3.0).item()
    assert dkd(s, t, beta=doubt, temperature=3.0).item() == pytest.approx(whole, **CLOSE)


@pytest.mark.parametrize(('gamma', 'tau'), [(1.0, 1.0), (1.5, 3.0)])
def test_nkd_equation(gamma, tau):
    s, t, y = rand(6, 5), rand(6, 5), torch.randint(5, (6,))
    expected = nkd_reference(s, t, y, gamma, tau)
    assert nkd(s, t, y, gamma, tau).item() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(('a', 'b', 'tau'), [(1.0, 1.0, 1.0), (2.0, 0.5, 4.0)])
def test_dist_equation(a, b, tau):
    s, t = rand(6, 5), rand(6, 5)
    expected = dist_reference(s, t, a, b, tau)
    assert dist(s, t, a, b, tau).item() == pytest.approx(expected, rel=1e-6)


def test_dist_ignores_scale_and_offset_of_the_probabilities():
    """Mixed with the uniform answer they stay a distribution: 0.6 p + 0.4 / C."""
    s, t = rand(6, 5), rand(6, 5)
    flatter = (0.6 * s.softmax(-1) + 0.4 / 5).log()
    assert torch.isclose(dist(flatter, t), dist(s, t), rtol=1e-5)
    assert dist((0.6 * t.softmax(-1) + 0.4 / 5).log(), t).abs() < 1e-5
    # Within an image each may have a scale of its own; over the images of a class not.
    share = torch.rand(6, 1, dtype=torch.float64).add(0.2).clamp(max=1)
    uneven = (share * s.softmax(-1) + (1 - share) / 5).log()
    assert torch.isclose(dist(uneven, t, 1.0, 0.0), dist(s, t, 1.0, 0.0), rtol=1e-5)
    assert not torch.isclose(dist(uneven, t, 0.0, 1.0), dist(s, t, 0.0, 1.0), rtol=1e-3)


def test_hard_label_equation():
    s, t = rand(6, 5), rand(6, 5)
    expected = ce_reference(s, torch.tensor([argmax(b) for b in t.tolist()]))
    assert hard_label(s, t).item() == pytest.approx(expected, **CLOSE)
    weight = torch.tensor([1.0, 0, 0, 0, 0, 3.0])
    chosen = [0, 5, 5, 5]
    assert torch.isclose(hard_label(s, t, weight), hard_label(s[chosen], t[chosen]))


def test_smoothed_and_soft_labels():
    s, y = rand(4, 5), torch.randint(5, (4,))
    soft = torch.full((4, 5), 0.1 / 5, dtype=torch.float64)
    soft[torch.arange(4), y] += 0.9
    expected = mean(
        -sum(q * math.log(p) for p, q in zip(softmax(a), b, strict=True)) for a, b in rows(s, soft)
    )
    smoothed = label_cross_entropy(s, y, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(expected, **CLOSE)
    assert label_cross_entropy(s, soft).item() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize('unbiased', [False, True])
def test_standardized_logits(unbiased):
    z = rand(3, 7)
    for row, seen in rows(z, standardize_logits(z, unbiased)):
        m = mean(row)
        std = math.sqrt(sum((v - m) ** 2 for v in row) / (7 - unbiased))
        assert seen == pytest.approx([(v - m) / std for v in row], rel=1e-9)


def test_standardization_wraps_any_loss_and_ignores_scale_and_offset():
    s, t = rand(4, 5), rand(4, 5)
    for loss in (partial(kl_divergence, temperature=2.0), dkd, dist):
        plain = with_standardized_logits(loss, s, t)
        assert plain > 0.01
        assert torch.isclose(with_standardized_logits(loss, 3 * s + 1, 0.2 * t - 7), plain)
    z = [torch.tensor([[(v - mean(r)) for v in r] for r in x.tolist()]).double() for x in (s, t)]
    z = [x / x.square().mean(-1, keepdim=True).sqrt() for x in z]
    expected = kl_reference(*z, 2.0)
    got = with_standardized_logits(kl_divergence, s, t, temperature=2.0)
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_standardized_equal_logits_are_finite():
    s = torch.full((2, 4), 3.0, requires_grad=True)
    with_standardized_logits(kl_divergence, s, torch.randn(2, 4)).backward()
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize('k', [1, 3, 5])
def test_sparse_label_equation(k):
    s, t = rand(4, 5), rand(4, 5)
    total = []
    for a, b in rows(s, t):
        p = softmax(b)
        kept = sorted(range(5), key=lambda c: -p[c])[:k]
        rest = (1 - sum(p[c] for c in kept)) / (5 - k) if k < 5 else 0.0
        y = [p[c] if c in kept else rest for c in range(5)]
        assert sum(y) == pytest.approx(1)
        total.append(-sum(q * math.log(v) for q, v in zip(y, softmax(a), strict=True)))
    labels = top_k_labels(t, k)
    assert sparse_label_ce(s, labels).item() == pytest.approx(mean(total), **CLOSE)
    dense = dense_labels(labels, 5)
    assert torch.allclose(dense.sum(-1), torch.ones(4, dtype=torch.float64))
    assert label_cross_entropy(s, dense).item() == pytest.approx(mean(total), **CLOSE)
    if k == 5:
        assert torch.allclose(dense, t.softmax(-1))


def test_sparse_labels_as_stored():
    s, t = rand(4, 50).float(), (3 * rand(4, 50)).float()
    labels = top_k_labels(t, 10)
    stored = SparseLabels(labels.classes.to(torch.int16), labels.probabilities.half())
    assert torch.isclose(sparse_label_ce(s, stored), sparse_label_ce(s, labels), rtol=2e-3)
    sure = SparseLabels(torch.tensor([[0, 1]]), torch.tensor([[0.999, 0.0015]]))  # over 1
    assert (dense_labels(sure, 4) >= 0).all()


@pytest.mark.parametrize('per_class', [False, True])
def test_noise_adaptation_equation(per_class):
    scores, s, y = rand(4, 3), rand(6, 4), torch.randint(4, (6,))
    accuracy = torch.tensor([0.9, 0.5, 0.7, 0.8]).double() if per_class else 0.75
    share = accuracy.tolist() if per_class else [accuracy] * 4
    q = []
    for i, row in enumerate(scores.tolist()):
        others = [(1 - share[i]) * v for v in softmax(row)]
        q.append(others[:i] + [share[i]] + others[i:])
    noise = noise_matrix(scores, accuracy)
    assert noise.tolist() == [pytest.approx(row, rel=1e-9) for row in q]
    assert torch.allclose(noise.sum(1), torch.ones(4, dtype=torch.float64))
    expected = mean(
        -math.log(sum(p * q[i][c] for i, p in enumerate(softmax(a)))) for a, c in rows(s, y)
    )
    assert noise_adapted_nll(s, y, noise).item() == pytest.approx(expected, **CLOSE)


def test_a_perfect_teacher_has_no_noise():
    scores, s, y = rand(4, 3, grad=True), rand(6, 4, grad=True), torch.randint(4, (6,))
    noise = noise_matrix(scores, 1.0)
    assert torch.equal(noise, torch.eye(4, dtype=torch.float64))
    loss = noise_adapted_nll(s, y, noise)
    assert torch.isclose(loss, label_cross_entropy(s, y))
    loss.backward()
    assert torch.isfinite(s.grad).all()
    assert torch.isfinite(scores.grad).all()


def test_noise_scores_learn_the_teachers_confusion():
    scores = torch.zeros(3, 2, requires_grad=True)
    # Images of class 0 that the teacher calls 2.
    loss = noise_adapted_nll(
        torch.tensor([[9.0, 0, 0]]), torch.tensor([2]), noise_matrix(scores, 0.8)
    )
    loss.backward()
    assert scores.grad[0, 1] < 0 < scores.grad[0, 0]


@pytest.mark.parametrize('mode', ['hard', 'soft'])
def test_distillation_token_equation(mode):
    own, token, t, y = rand(6, 5), rand(6, 5), rand(6, 5), torch.randint(5, (6,))
    first = torch.tensor([argmax(b) for b in t.tolist()])
    told = ce_reference(token, first) if mode == 'hard' else kl_reference(token, t, 3.0)
    loss = partial(distillation_token, mode=mode, alpha=0.4, temperature=3.0)
    expected = 0.6 * ce_reference(own, y) + 0.4 * told
    assert loss(own, token, t, y).item() == pytest.approx(expected, **CLOSE)
    expected = 0.6 * ce_reference(own, first) + 0.4 * told
    assert loss(own, token, t).item() == pytest.approx(expected, **CLOSE)


def test_co_advise_equation():
    own, advised = rand(6, 5), [rand(6, 5), rand(6, 5)]
    teachers, y = [rand(6, 5), rand(6, 5)], torch.randint(5, (6,))
    expected = ce_reference(own, y) + sum(map(kl_reference, advised, teachers))
    assert co_advise(own, advised, teachers, y).item() == pytest.approx(expected, **CLOSE)
    kls = [kl_reference(a, t, tau) for a, t, tau in zip(advised, teachers, (2.0, 3.0), strict=True)]
    expected = 0.5 * ce_reference(own, y) + 0.1 * kls[0] + 0.7 * kls[1]
    got = co_advise(own, advised, teachers, y, (0.1, 0.7), (2.0, 3.0), 0.5)
    assert got.item() == pytest.approx(expected, **CLOSE)
    both = [
        [a + b for a, b in zip(softmax(u), softmax(v), strict=True)] for u, v in rows(*teachers)
    ]
    labels = torch.tensor([argmax(row) for row in both])
    got = co_advise(own, advised, teachers)
    assert got.item() == pytest.approx(co_advise(own, advised, teachers, labels).item())


# --- what all of them keep ------------------------------------------------------------------------

LOSSES = {
    'hard': hard_label,
    'dkd': dkd,
    'nkd': nkd,
    'nkd_soft': partial(nkd, temperature=3.0),
    'dist': dist,
    'dist_soft': partial(dist, temperature=4.0),
    'standardized': partial(with_standardized_logits, kl_divergence, temperature=2.0),
    'standardized_dkd': partial(with_standardized_logits, dkd),
    'sparse': lambda s, t: sparse_label_ce(s, top_k_labels(t, 2)),
    'noise': lambda s, t: noise_adapted_nll(
        s, t.argmax(-1), noise_matrix(torch.zeros(t.shape[-1], t.shape[-1] - 1), 0.9)
    ),
    'token_hard': lambda s, t: distillation_token(s, s + 1, t),
    'token_soft': lambda s, t: distillation_token(s, 2 * s, t, mode='soft'),
    'co_advise': lambda s, t: co_advise(s, [2 * s, s], [t, -t]),
}
DIVERGENCES = ('dkd', 'dist', 'dist_soft', 'standardized', 'standardized_dkd')


@pytest.mark.parametrize('name', LOSSES)
def test_no_loss_scales_with_the_batch(name):
    s, t = rand(3, 5), rand(3, 5)
    once = LOSSES[name](s, t)
    assert once > 0.01
    assert torch.isclose(LOSSES[name](s.repeat(4, 1), t.repeat(4, 1)), once, rtol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_gradient_goes_to_the_student_only(name):
    s, t = rand(4, 5, grad=True), rand(4, 5, grad=True)
    LOSSES[name](s, t).backward()
    assert t.grad is None
    assert s.grad.any()
    if name in DIVERGENCES:
        assert LOSSES[name](t, t).abs() < 1e-6


@pytest.mark.parametrize('name', LOSSES)
def test_gradcheck(name):
    s, t = rand(3, 4, grad=True), rand(3, 4)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, t), (s,))


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_halves_are_finite(name, dtype):
    s = (60 * torch.randn(8, 10)).to(dtype).requires_grad_()
    t = (60 * torch.randn(8, 10)).to(dtype)
    loss = LOSSES[name](s, t)
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize('name', LOSSES)
def test_no_rows_keep_the_graph(name):
    layer = torch.nn.Linear(3, 5)
    loss = LOSSES[name](layer(torch.zeros(0, 3)), torch.zeros(0, 5))
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_rows_may_have_places():
    s, t = rand(2, 3, 5), rand(2, 3, 5)
    for loss in (hard_label, dkd, nkd, dist):
        assert torch.isclose(loss(s, t), loss(s.flatten(0, 1), t.flatten(0, 1)))


Z = torch.zeros


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: dkd(Z(2, 3), Z(2, 4)), 'one shape'),
        (lambda: dkd(Z(2, 3), Z(2, 3), temperature=0), 'positive'),
        (lambda: dkd(Z(2, 3), Z(2, 3), Z(2, 3)), 'one target class'),
        (lambda: dkd(Z(2, 1), Z(2, 1)), 'two classes'),
        (lambda: nkd(Z(2, 3), Z(2, 3), torch.zeros(3, dtype=torch.long)), 'class indices'),
        (lambda: dist(Z(2, 3), Z(3, 3)), 'one shape'),
        (lambda: hard_label(Z(2, 3), Z(2, 4)), 'one shape'),
        (lambda: with_standardized_logits(dkd, Z(2, 3), Z(2, 4)), 'one shape'),
        (lambda: top_k_labels(Z(2, 3), 4), 'number of classes'),
        (lambda: sparse_label_ce(Z(2, 3), top_k_labels(Z(3, 3), 1)), 'same rows'),
        (lambda: sparse_label_ce(Z(2, 3), top_k_labels(Z(2, 9), 4)), r'1 \.\.\. 3'),
        (lambda: noise_matrix(Z(3, 3), 0.9), r'\[C, C - 1\]'),
        (lambda: noise_matrix(Z(3, 2), 1.5), 'share'),
        (lambda: noise_adapted_nll(Z(2, 4), Z(2).long(), torch.eye(3)), r'\[4, 4\]'),
        (lambda: noise_adapted_nll(Z(2, 3), Z(2, 3), torch.eye(3)), 'class indices'),
        (lambda: distillation_token(Z(2, 3), Z(2, 3), Z(2, 3), mode='warm'), 'hard'),
        (lambda: distillation_token(Z(2, 3), Z(2, 3), Z(2, 3), alpha=2), 'alpha'),
        (lambda: distillation_token(Z(2, 3), Z(2, 4), Z(2, 3)), 'one shape'),
        (lambda: co_advise(Z(2, 3), [Z(2, 3)], [Z(2, 3)] * 2), 'as many'),
        (lambda: co_advise(Z(2, 3), [], []), 'as many'),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
