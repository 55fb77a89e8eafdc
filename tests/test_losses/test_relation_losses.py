"""Losses of relations against their equations, entry by entry in Python floats."""

import itertools
import math
from functools import partial

import pytest
import torch

from mmdfkd.losses import (
    hidden_relation,
    inter_image,
    intra_image,
    manifold,
    manifold_terms,
    merge_patches,
    patch_tokens,
    qkv_relation,
    random_sampled,
    rkd_angle,
    rkd_distance,
    split_qkv,
    token_self_similarity,
)

CLOSE = {'rel': 1e-9, 'abs': 1e-12}
B, N, D_S, D_T = 3, 6, 4, 7


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape, grad=False):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def pair(grad=False, tokens=N):
    return rand(B, tokens, D_S, grad=grad), rand(B, tokens, D_T, grad=grad)


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def cos(x, y):
    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def softmax(row):
    exp = [math.exp(v) for v in row]
    return [e / sum(exp) for e in exp]


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


# --- references -----------------------------------------------------------------------------------


def map_reference(s_rows, t_rows):
    """``||M(S) - M(T)||_F^2`` of two lists of vectors."""
    return sum(
        (cos(s_rows[i], s_rows[j]) - cos(t_rows[i], t_rows[j])) ** 2
        for i, j in itertools.product(range(len(s_rows)), repeat=2)
    )


def intra_reference(s, t):
    """The paper's ``L_intra``."""
    return mean(map_reference(a, b) for a, b in zip(s.tolist(), t.tolist(), strict=True))


def inter_reference(s, t):
    """The paper's ``L_inter``."""
    return intra_reference(s.transpose(0, 1), t.transpose(0, 1))


def random_reference(s, t, indices):
    """The paper's ``L_rand``."""
    s_rows = [v for image in s.tolist() for v in image]
    t_rows = [v for image in t.tolist() for v in image]
    return map_reference([s_rows[i] for i in indices], [t_rows[i] for i in indices])


def qkv_reference(student, teacher, heads, entropy):
    """MiniViT's ``L_attn``."""

    def relation(x, y, b, h, i):
        width = x.shape[-1] // heads
        part = slice(h * width, (h + 1) * width)
        row = x[b, i, part].tolist()
        return softmax([dot(row, k) / math.sqrt(width) for k in y[b, :, part].tolist()])

    total = []
    for i, j in itertools.product(range(3), repeat=2):
        for b, h, n in itertools.product(range(B), range(heads), range(student[0].shape[1])):
            p_s = relation(student[i], student[j], b, h, n)
            p_t = relation(teacher[i], teacher[j], b, h, n)
            total.append(
                sum(
                    q * ((math.log(q) if entropy else 0) - math.log(p))
                    for p, q in zip(p_s, p_t, strict=True)
                )
            )
    return mean(total)


def similarity_reference(s, t, tau, include_self):
    total = []
    for s_rows, t_rows in zip(s.tolist(), t.tolist(), strict=True):
        for i in range(len(s_rows)):
            others = [j for j in range(len(s_rows)) if include_self or j != i]
            p_s = softmax([cos(s_rows[i], s_rows[j]) / tau for j in others])
            p_t = softmax([cos(t_rows[i], t_rows[j]) / tau for j in others])
            total.append(sum(q * math.log(q / p) for p, q in zip(p_s, p_t, strict=True)))
    return mean(total)


def distance_reference(s, t):
    pairs = list(itertools.permutations(range(len(s)), 2))

    def distances(rows):
        found = [math.dist(rows[i], rows[j]) for i, j in pairs]
        return [d / mean(found) for d in found]

    found = zip(distances(s.tolist()), distances(t.tolist()), strict=True)
    return mean(huber(a - b) for a, b in found)


def angle_reference(s, t):
    def angle(rows, i, j, k):
        to_i = [a - b for a, b in zip(rows[i], rows[j], strict=True)]
        to_k = [a - b for a, b in zip(rows[k], rows[j], strict=True)]
        return cos(to_i, to_k)

    s, t = s.tolist(), t.tolist()
    triples = itertools.permutations(range(len(s)), 3)
    return mean(huber(angle(s, *ijk) - angle(t, *ijk)) for ijk in triples)


# --- equations ------------------------------------------------------------------------------------


def test_intra_image_is_the_papers_over_n_squared():
    s, t = pair()
    expected = intra_reference(s, t) / N**2
    assert intra_image(s, t).item() == pytest.approx(expected, **CLOSE)
    assert hidden_relation(s, t).item() == pytest.approx(expected, **CLOSE)
    # MiniViT's release: 49 times the mean, weight 0.1.
    squares = intra_reference(s, t) / N**2
    assert 4.9 * hidden_relation(s, t).item() == pytest.approx(0.1 * 49 * squares, **CLOSE)


def test_inter_image_is_the_papers_over_b_squared():
    s, t = pair()
    assert inter_image(s, t).item() == pytest.approx(inter_reference(s, t) / B**2, **CLOSE)


def test_random_sampled_is_the_papers_over_k_squared():
    s, t = pair()
    indices = [4, 17, 0, 9]
    expected = random_reference(s, t, indices) / 16
    got = random_sampled(s, t, indices=torch.tensor(indices))
    assert got.item() == pytest.approx(expected, **CLOSE)


def test_random_sampled_draws_without_replacement_and_follows_its_generator():
    s, t = pair()
    everything = random_reference(s, t, range(B * N)) / (B * N) ** 2
    assert random_sampled(s, t).item() == pytest.approx(everything, **CLOSE)
    one, two = (random_sampled(s, t, 5, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    assert one != two
    assert one == random_sampled(s, t, 5, generator=torch.Generator().manual_seed(1))
    indices = torch.randperm(B * N, generator=torch.Generator().manual_seed(1))[:5]
    expected = random_reference(s, t, indices.tolist()) / 25
    assert one.item() == pytest.approx(expected, **CLOSE)


def test_manifold_equation_with_unequal_prefix_tokens():
    # The teacher has more of them: there the released code keeps a single token.
    s, t = rand(B, 1 + N, D_S), rand(B, 2 + N, D_T)
    p_s, p_t = s[:, 1:], t[:, 2:]
    terms = manifold_terms(s, t, prefix_tokens=(1, 2))
    expected = (
        intra_reference(p_s, p_t) / N**2,
        inter_reference(p_s, p_t) / B**2,
        random_reference(p_s, p_t, range(B * N)) / (B * N) ** 2,
    )
    assert [x.item() for x in terms] == [pytest.approx(x, **CLOSE) for x in expected]
    total = 4 * expected[0] + 0.1 * expected[1] + 0.2 * expected[2]
    assert manifold(s, t, prefix_tokens=(1, 2)).item() == pytest.approx(total, **CLOSE)
    got = manifold(s, t, 1.0, 2.0, 3.0, prefix_tokens=(1, 2))
    total = expected[0] + 2 * expected[1] + 3 * expected[2]
    assert got.item() == pytest.approx(total, **CLOSE)


def test_class_tokens_stay_in_where_no_prefix_is_named():
    s, t = pair(tokens=1 + N)
    expected = intra_reference(s, t) / (1 + N) ** 2
    assert manifold_terms(s, t).intra.item() == pytest.approx(expected, **CLOSE)


def test_merging_concatenates_neighbourhoods():
    x = rand(2, 4 * 6, 3)
    merged = merge_patches(x, (4, 6), (2, 3))
    assert merged.shape == (2, 6, 12)
    grid = x.view(2, 4, 6, 3)
    for row, column in itertools.product(range(2), range(3)):
        block = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, 12)
        assert torch.equal(merged[:, 3 * row + column], block)
    assert merge_patches(x, (4, 6), (4, 6)) is x


def test_merged_manifold_of_unequal_grids():
    s, t = rand(B, 1 + 16, D_S), rand(B, 36, D_T)
    s_grid, t_grid = s[:, 1:].view(B, 4, 4, D_S), t.view(B, 6, 6, D_T)

    def blocks(x, k):
        return torch.stack(
            [
                x[:, k * i : k * i + k, k * j : k * j + k].reshape(B, -1)
                for i in range(2)
                for j in range(2)
            ],
            1,
        )

    m_s, m_t = blocks(s_grid, 2), blocks(t_grid, 3)
    terms = manifold_terms(
        s, t, prefix_tokens=(1, 0), grids=((4, 4), (6, 6)), merged=(2, 2), num_samples=192
    )
    assert terms.intra.item() == pytest.approx(intra_reference(m_s, m_t) / 16, **CLOSE)
    assert terms.inter.item() == pytest.approx(inter_reference(m_s, m_t) / B**2, **CLOSE)


def test_maps_of_a_detector_are_tokens_without_prefix():
    s, t = rand(B, 2, 3, D_S), rand(B, 2, 3, D_T)
    assert manifold(s, t) == manifold(s.flatten(1, 2), t.flatten(1, 2))


@pytest.mark.parametrize(('heads', 'entropy'), [(1, False), (2, True)])
def test_qkv_relation_equation(heads, entropy):
    student, teacher = rand(B, 5, 3 * 4), rand(B, 5, 3 * 6)
    q, k, v = split_qkv(student)
    assert torch.equal(torch.cat([q, k, v], -1), student)
    args = (split_qkv(student), split_qkv(teacher))
    got = qkv_relation(*args, relation_heads=heads, subtract_entropy=entropy)
    assert got.item() == pytest.approx(qkv_reference(*args, heads, entropy), **CLOSE)


def test_qkv_relation_has_one_gradient_with_or_without_entropy():
    student, teacher = rand(B, 5, 12, grad=True), rand(B, 5, 18)
    grads = [
        torch.autograd.grad(
            qkv_relation(split_qkv(student), split_qkv(teacher), subtract_entropy=on), student
        )[0]
        for on in (False, True)
    ]
    assert torch.allclose(*grads, atol=1e-15)


@pytest.mark.parametrize(('tau', 'include_self'), [(0.07, False), (0.5, True)])
def test_self_similarity_equation(tau, include_self):
    s, t = pair()
    expected = similarity_reference(s, t, tau, include_self)
    got = token_self_similarity(s, t, tau, include_self)
    assert got.item() == pytest.approx(expected, **CLOSE)


def test_rkd_equations_and_their_releases():
    s, t = rand(5, D_S), rand(5, D_T)
    distance, angle = distance_reference(s, t), angle_reference(s, t)
    assert rkd_distance(s, t).item() == pytest.approx(distance, rel=1e-6)
    assert rkd_angle(s, t).item() == pytest.approx(angle, rel=1e-6)
    # The release averages over all pairs and triples, those of one sample included.
    all_pairs = sum(huber(a) for a in (_normed(s) - _normed(t)).flatten().tolist()) / 25
    assert all_pairs == pytest.approx(distance * 4 / 5, rel=1e-6)


def _normed(x):
    d = torch.cdist(x, x)
    return d / d[d > 0].mean()


# --- what all of them keep ------------------------------------------------------------------------

TOKEN_LOSSES = {
    'intra': intra_image,
    'inter': inter_image,
    'random': random_sampled,
    'manifold': manifold,
    'hidden': hidden_relation,
    'similarity': partial(token_self_similarity, temperature=0.2),
    'qkv': lambda s, t: qkv_relation((s, s + 1, 2 * s), (t, t + 1, 2 * t), subtract_entropy=True),
    'rkd_distance': lambda s, t: rkd_distance(s.flatten(0, 1), t.flatten(0, 1)),
    'rkd_angle': lambda s, t: rkd_angle(s.flatten(0, 1), t.flatten(0, 1)),
}
COSINE = ('intra', 'inter', 'random', 'manifold', 'hidden', 'similarity')
RKD = ('rkd_distance', 'rkd_angle')


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_rotations_and_empty_channels_change_nothing(name):
    s, t = pair()
    loss = TOKEN_LOSSES[name] if name != 'qkv' else _plain_qkv
    once = loss(s, t)
    assert once > 1e-3
    rotated = loss(s @ torch.linalg.qr(rand(D_S, D_S)).Q, t @ torch.linalg.qr(rand(D_T, D_T)).Q)
    assert torch.isclose(rotated, once, rtol=1e-9)
    if name != 'qkv':  # there the width is the temperature
        # In either network.
        for sides in ((_padded(s), t), (s, _padded(t)), (_padded(s), _padded(t))):
            assert torch.isclose(loss(*sides), once, rtol=1e-9)


def _padded(x):
    return torch.cat([x, torch.zeros(B, N, 3)], -1)


def _plain_qkv(s, t):
    return qkv_relation((s, s, s), (t, t, t))


@pytest.mark.parametrize('name', COSINE)
def test_scale_of_a_token_changes_nothing(name):
    s, t = pair()
    scaled = TOKEN_LOSSES[name](s * torch.rand(B, N, 1).add(0.1), t * torch.rand(B, N, 1).add(0.1))
    assert torch.isclose(scaled, TOKEN_LOSSES[name](s, t), rtol=1e-9)


@pytest.mark.parametrize('name', RKD)
def test_scale_and_offset_of_all_change_nothing(name):
    s, t = pair()
    moved = TOKEN_LOSSES[name](3 * s + 1, 0.1 * t - 5)
    assert torch.isclose(moved, TOKEN_LOSSES[name](s, t), rtol=1e-6)


@pytest.mark.parametrize('name', [*COSINE, 'qkv'])
def test_no_loss_scales_with_the_batch(name):
    s, t = pair()
    many = TOKEN_LOSSES[name](s.repeat(4, 1, 1), t.repeat(4, 1, 1))
    assert torch.isclose(many, TOKEN_LOSSES[name](s, t), rtol=1e-9)


@pytest.mark.parametrize('name', ['intra', 'inter', 'random', 'manifold', 'hidden'])
def test_no_loss_scales_with_resolution(name):
    s, t = pair()
    many = TOKEN_LOSSES[name](s.repeat(1, 4, 1), t.repeat(1, 4, 1))
    assert torch.isclose(many, TOKEN_LOSSES[name](s, t), rtol=1e-9)


@pytest.mark.parametrize('name', RKD)
def test_rkd_does_not_scale_with_the_number_of_samples(name):
    few, many = (
        sum(TOKEN_LOSSES[name](rand(1, n, D_S), rand(1, n, D_T)).item() for _ in range(r)) / r
        for n, r in ((5, 200), (20, 50))
    )
    # The mean distance of a few is itself an estimate; a sum over pairs would grow 16-fold.
    assert few == pytest.approx(many, rel=0.3)


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_gradient_goes_to_the_student_only(name):
    s, t = pair(grad=True)
    TOKEN_LOSSES[name](s, t).backward()
    assert t.grad is None
    assert s.grad.any()
    assert TOKEN_LOSSES[name](t, t).abs() < 1e-12
    # One space in other coordinates: nothing to complain about.
    turned = t.detach() @ torch.linalg.qr(rand(D_T, D_T)).Q
    if name != 'qkv':
        assert TOKEN_LOSSES[name](turned, t).abs() < 1e-12


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_gradcheck(name):
    s, t = rand(2, 3, D_S, grad=True), rand(2, 3, D_T)
    everything = torch.arange(6)
    loss = partial(random_sampled, indices=everything) if name == 'random' else TOKEN_LOSSES[name]
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (s,))


@pytest.mark.parametrize('name', TOKEN_LOSSES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_halves_are_finite(name, dtype):
    s = (60 * torch.randn(B, N, D_S)).to(dtype)
    s[0, 0] = 0  # a token of no length
    s[0, 1] = s[0, 2]  # and samples that coincide
    s.requires_grad_()
    t = (60 * torch.randn(B, N, D_T)).to(dtype)
    loss = TOKEN_LOSSES[name](s, t)
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_autocast_does_not_round_relations(name):
    s, t = (x.float() for x in pair())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rounded = TOKEN_LOSSES[name](s, t)
    assert torch.isclose(rounded, TOKEN_LOSSES[name](s, t), rtol=1e-4)


@pytest.mark.parametrize('name', TOKEN_LOSSES)
def test_no_images_keep_the_graph(name):
    layer = torch.nn.Linear(3, D_S)
    loss = TOKEN_LOSSES[name](layer(torch.zeros(0, N, 3)), torch.zeros(0, N, D_T))
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize('loss', [rkd_distance, rkd_angle])
def test_one_sample_has_no_relations(loss):
    s = rand(1, D_S, grad=True)
    out = loss(s, rand(1, D_T))
    out.backward()
    assert out == 0
    assert not s.grad.any()


Z = torch.zeros


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: intra_image(Z(2, 5, 3), Z(2, 4, 3)), 'prefix tokens'),
        (lambda: inter_image(Z(2, 5, 3), Z(3, 5, 3)), 'same images'),
        (lambda: random_sampled(Z(2, 5, 3), Z(2, 5, 4), 0), 'num_samples'),
        (lambda: manifold(Z(2, 5, 3), Z(2, 5, 3), prefix_tokens=(0, 1)), 'prefix tokens'),
        (lambda: manifold(Z(2, 5, 3), Z(2, 5, 3), prefix_tokens=(5, 1)), 'student has 5'),
        (lambda: manifold(Z(2, 4, 3), Z(2, 4, 3), merged=(1, 1)), 'grids'),
        (
            lambda: manifold(Z(2, 4, 3), Z(2, 9, 3), grids=((2, 2), (3, 3)), merged=(2, 2)),
            'divisors',
        ),
        (lambda: merge_patches(Z(2, 5, 3), (2, 2), (1, 1)), 'fill'),
        (lambda: patch_tokens(Z(2, 5), 1), r'\[B, N, D\]'),
        (lambda: patch_tokens(Z(2, 5, 5, 3), 1), r'\[B, H, W, D\]'),
        (lambda: split_qkv(Z(2, 5, 4)), 'side by side'),
        (lambda: qkv_relation([Z(2, 5, 3)] * 2, [Z(2, 5, 3)] * 3), 'queries, keys and values'),
        (lambda: qkv_relation([Z(2, 5, 3)] * 3, [Z(2, 6, 3)] * 3), 'prefix tokens'),
        (lambda: qkv_relation([Z(2, 5, 3)] * 3, [Z(2, 5, 4)] * 3, 2), 'relation heads'),
        (lambda: token_self_similarity(Z(2, 1, 3), Z(2, 1, 3)), 'two tokens'),
        (lambda: token_self_similarity(Z(2, 3, 3), Z(2, 3, 3), 0), 'positive'),
        (lambda: rkd_distance(Z(2, 3), Z(3, 3)), 'same samples'),
        (lambda: rkd_angle(Z(2, 5, 3), Z(2, 5, 3)), 'pool'),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
