"""Attention losses against their equations in float64, and what their docstrings state."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmdfkd.losses.attention_consistency import (
    attention_consistency,
    attention_uniformity,
    patch_attention,
)
from mmdfkd.losses.attention_probe import attention_probe, class_gram_row
from mmdfkd.losses.attention_rows import attention_rows, qkv_heads
from mmdfkd.losses.head_attention import head_attention, ssim


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape, grad=False):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def rows(*shape, grad=False):
    """Attention rows of random logits."""
    return rand(*shape).softmax(-1).requires_grad_(grad)


def softmax(row):
    exp = [math.exp(v) for v in row]
    return [e / sum(exp) for e in exp]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


# --- references, written from the equations -------------------------------------------------------


def gram_row_reference(tokens, prefix, axis):
    """``p_j = <F^_0, F^_j>`` for the patches ``j`` of one image, as lists."""
    if axis == 'channel':
        unit = [[v / math.sqrt(dot(row, row)) for v in row] for row in tokens]
    else:
        norms = [math.sqrt(sum(row[c] ** 2 for row in tokens)) for c in range(len(tokens[0]))]
        unit = [[v / n for v, n in zip(row, norms, strict=True)] for row in tokens]
    return [dot(unit[0], row) for row in unit[prefix:]]


def probe_reference(student, teacher, prefix, axis):
    total = count = 0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s = gram_row_reference(s, prefix[0], axis)
        p_t = gram_row_reference(t, prefix[1], axis)
        total += sum((a - b) ** 2 for a, b in zip(p_s, p_t, strict=True))
        count += len(p_t)
    return total / count


def consistency_reference(student, teacher, prefix, distance):
    total = count = 0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        for r in range(len(s[0])):
            p_s, p_t = (
                [sum(h[r][j] for h in x) / len(x) for j in range(p, len(x[0][r]))]
                for x, p in ((s, prefix[0]), (t, prefix[1]))
            )
            n = len(p_t)
            if distance == 'mse':
                total += sum((n * b - n * a) ** 2 for a, b in zip(p_s, p_t, strict=True)) / n
            else:
                p_s, p_t = [a / sum(p_s) for a in p_s], [b / sum(p_t) for b in p_t]
                total += sum(b * math.log(b / a) for a, b in zip(p_s, p_t, strict=True))
            count += 1
    return total / count


def ssim_reference(a, b):
    n = len(a)
    m_a, m_b = sum(a) / n, sum(b) / n
    v_a, v_b = sum((x - m_a) ** 2 for x in a) / n, sum((x - m_b) ** 2 for x in b) / n
    cov = sum((x - m_a) * (y - m_b) for x, y in zip(a, b, strict=True)) / n
    c_1, c_2 = 1e-4, 9e-4
    return ((2 * m_a * m_b + c_1) * (2 * cov + c_2)) / ((m_a**2 + m_b**2 + c_1) * (v_a + v_b + c_2))


def head_reference(student, teacher, distance):
    pairs = list(zip(student.flatten(0, 2).tolist(), teacher.flatten(0, 2).tolist(), strict=True))
    if distance == 'kl':
        return sum(
            sum(b * math.log(b / a) for a, b in zip(s, t, strict=True)) for s, t in pairs
        ) / len(pairs)
    n = len(pairs[0][0])
    return sum(1 - ssim_reference([n * a for a in s], [n * b for b in t]) for s, t in pairs) / len(
        pairs
    )


# --- rows from queries and keys -------------------------------------------------------------------


@pytest.mark.parametrize('prefix', [0, 1, 2])
def test_rows_are_those_of_the_whole_attention(prefix):
    qkv = rand(2, 7, 3 * 2 * 4)
    query, key, value = qkv_heads(qkv, 2)
    assert query.shape == key.shape == value.shape == (2, 2, 7, 4)
    for b in range(2):
        for h in range(2):
            # mmpretrain: three parts, each head by head.
            q, k, v = (
                qkv[b, :, part * 8 + h * 4 : part * 8 + h * 4 + 4].tolist() for part in range(3)
            )
            assert value[b, h].tolist() == v
            whole = [softmax([dot(q_i, k_j) / 2 for k_j in k]) for q_i in q]
            got = attention_rows(query, key, 'all', prefix)[b, h]
            assert torch.allclose(got, torch.tensor(whole, dtype=torch.float64), atol=1e-14)
            mean = [sum(row[c] for row in q[prefix:]) / (7 - prefix) for c in range(4)]
            wanted = softmax([dot(mean, k_j) / 2 for k_j in k])
            got = attention_rows(query, key, 'mean', prefix)[b, h, 0]
            assert got.tolist() == pytest.approx(wanted, rel=1e-12)
    whole = attention_rows(query, key, 'all')
    assert torch.equal(attention_rows(query, key, [3, 5]), whole[:, :, [3, 5]])
    assert torch.equal(attention_rows(query, key, 'class'), whole[:, :, :1])


def test_rows_agree_with_fused_attention_and_its_bias():
    query, key, value = qkv_heads(rand(2, 3, 3, 24), 2)  # a window of ViTDet
    bias = rand(2, 2, 9, 9)
    fused = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    assert torch.allclose(attention_rows(query, key, 'all', bias=bias) @ value, fused)
    scaled = F.scaled_dot_product_attention(query, key, value, scale=0.7)
    assert torch.allclose(attention_rows(query, key, 'all', scale=0.7) @ value, scaled)


# --- equations ------------------------------------------------------------------------------------


@pytest.mark.parametrize('axis', ['channel', 'token'])
@pytest.mark.parametrize('prefix', [(1, 1), (1, 2), (2, 1)])
def test_probe_equation(axis, prefix):
    student, teacher = rand(3, prefix[0] + 6, 4), rand(3, prefix[1] + 6, 9)
    expected = probe_reference(student, teacher, prefix, axis)
    loss = attention_probe(student, teacher, prefix, axis)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_probe_over_layers_is_the_release():
    student, teacher = rand(3, 2, 7, 4), rand(3, 2, 7, 9)  # layers, images, tokens, channels
    f_s, f_t = F.normalize(student, dim=2), F.normalize(teacher, dim=2)
    p_s, p_t = ((f @ f.transpose(2, 3))[:, :, 0, 1:] for f in (f_s, f_t))
    released = (p_t - p_s).square().sum() / (3 * 2 * 6)
    ours = sum(attention_probe(s, t, 1, 'token') for s, t in zip(student, teacher, strict=True)) / 3
    assert torch.isclose(ours, released, rtol=1e-12)


def test_probe_ignores_scale_of_tokens_rotation_and_padding_of_channels():
    s, t = rand(2, 7, 4), rand(2, 7, 6)
    once = attention_probe(s, t)
    rotation = torch.linalg.qr(rand(4, 4)).Q
    for same in (
        s * torch.rand(2, 7, 1, dtype=torch.float64).add(0.1),
        s @ rotation,
        F.pad(s, (0, 3)),
        s.repeat(1, 1, 3),
    ):
        assert torch.isclose(attention_probe(same, t), once, rtol=1e-10)
    by_token = attention_probe(s, t, norm_axis='token')
    scaled = s * torch.rand(4, dtype=torch.float64).add(0.1)
    assert torch.isclose(attention_probe(scaled, t, norm_axis='token'), by_token, rtol=1e-10)
    # The release's rows grow with the width.
    wide = class_gram_row(s.repeat(1, 1, 3), 1, 'token')
    assert torch.allclose(wide, 3 * class_gram_row(s, 1, 'token'))


def test_probe_without_class_token_takes_the_mean_patch():
    tokens = rand(2, 6, 4)
    unit = tokens / tokens.square().sum(-1, keepdim=True).sqrt()
    assert torch.allclose(class_gram_row(tokens, 0), (unit @ unit.transpose(1, 2)).mean(1))


@pytest.mark.parametrize('distance', ['mse', 'kl'])
@pytest.mark.parametrize('prefix', [(1, 1), (2, 1), (0, 2)])
def test_consistency_equation(distance, prefix):
    student, teacher = rows(2, 3, 2, prefix[0] + 6), rows(2, 4, 2, prefix[1] + 6)
    expected = consistency_reference(student, teacher, prefix, distance)
    loss = attention_consistency(student, teacher, prefix, distance)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('distance', ['mse', 'kl'])
def test_consistency_ignores_the_order_of_heads_and_the_resolution(distance):
    s, t = rows(2, 3, 1, 6), rows(2, 3, 1, 6)
    once = attention_consistency(s, t, 0, distance)
    order = [2, 0, 1]
    assert torch.isclose(attention_consistency(s[:, order], t, 0, distance), once, rtol=1e-10)
    # Every patch in four: a quarter of the attention each.
    fine = [x.repeat_interleave(4, -1) / 4 for x in (s, t)]
    assert torch.isclose(attention_consistency(*fine, 0, distance), once, rtol=1e-10)


def test_patch_attention_is_one_where_uniform():
    uniform = torch.full((1, 2, 1, 8), 1 / 8)
    assert torch.allclose(patch_attention(uniform, 0), torch.ones(1, 1, 8))


@pytest.mark.parametrize('distance', ['ssim', 'kl'])
def test_head_attention_equation(distance):
    student, teacher = rows(2, 3, 2, 7), rows(2, 3, 2, 7)
    expected = head_reference(student, teacher, distance)
    assert head_attention(student, teacher, distance).item() == pytest.approx(expected, rel=1e-12)
    fine = [x.repeat_interleave(4, -1) / 4 for x in (student, teacher)]
    assert head_attention(*fine, distance).item() == pytest.approx(expected, rel=1e-10)
    swapped = head_attention(student[:, [1, 0, 2]], teacher, distance)
    assert not torch.isclose(swapped, head_attention(student, teacher, distance))


def test_ssim_is_symmetric_and_at_most_one():
    a, b = rand(5, 9), rand(5, 9)
    assert torch.allclose(ssim(a, b), ssim(b, a))
    assert ssim(a, b).max() < 1
    assert torch.allclose(ssim(a, a), torch.ones(5, dtype=torch.float64))


def test_uniformity_equation_and_bounds():
    a = rows(3, 2, 10)
    cos = attention_uniformity(a)
    assert cos.shape == (3, 2)
    for row, got in zip(a.flatten(0, 1).tolist(), cos.flatten().tolist(), strict=True):
        patches = row[1:]
        identity = (1 - row[0]) / (math.sqrt(9) * math.sqrt(dot(patches, patches)))
        assert got == pytest.approx(identity, rel=1e-12)
    assert attention_uniformity(torch.ones(4) / 4, 0).item() == pytest.approx(1)
    assert attention_uniformity(torch.eye(9)[3], 0).item() == pytest.approx(1 / 3)
    # Blind to how much the class token keeps for itself.
    shifted = torch.cat([torch.zeros(3, 2, 1, dtype=torch.float64), a[..., 1:]], -1)
    assert torch.allclose(attention_uniformity(shifted), cos)


# --- invariances ----------------------------------------------------------------------------------

LOSSES = {
    'probe': attention_probe,
    'token_probe': lambda s, t: attention_probe(s, t, 1, 'token'),
    'mean_probe': lambda s, t: attention_probe(s, t, 0),
    'consistency': lambda s, t: attention_consistency(attend(s), attend(t)),
    'consistency_kl': lambda s, t: attention_consistency(attend(s), attend(t), 1, 'kl'),
    'head_ssim': lambda s, t: head_attention(attend(s), attend(t)),
    'head_kl': lambda s, t: head_attention(attend(s), attend(t), 'kl'),
}


def attend(tokens):
    """Class rows of two heads out of tokens of width 12."""
    query, key, _ = qkv_heads(tokens, 2)
    return attention_rows(query, key)


@pytest.mark.parametrize('name', LOSSES)
def test_no_loss_scales_with_the_batch(name):
    s, t = rand(3, 7, 12), rand(3, 7, 12)
    once = LOSSES[name](s, t)
    assert once > 0
    assert torch.isclose(LOSSES[name](s.repeat(4, 1, 1), t.repeat(4, 1, 1)), once, rtol=1e-10)


@pytest.mark.parametrize('name', LOSSES)
def test_zero_at_agreement_and_no_gradient_to_the_teacher(name):
    s, t = rand(2, 7, 12, grad=True), rand(2, 7, 12, grad=True)
    assert LOSSES[name](t.detach().clone(), t).abs() < 1e-12
    LOSSES[name](s, t).backward()
    assert t.grad is None
    assert s.grad.any()


@pytest.mark.parametrize('name', LOSSES)
def test_gradcheck(name):
    s, t = rand(2, 4, 6, grad=True), rand(2, 4, 6)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, t), (s,))


def test_uniformity_reaches_the_images():
    a = rows(2, 2, 5, grad=True)
    assert torch.autograd.gradcheck(attention_uniformity, (a,))


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_halves_are_finite(name, dtype):
    s = (30 * torch.randn(2, 9, 96)).to(dtype).requires_grad_()
    t = (30 * torch.randn(2, 9, 96)).to(dtype)
    loss = LOSSES[name](s, t)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()
    full = LOSSES[name](s.detach().float(), t.float())
    assert torch.isclose(loss, full, rtol=1e-4)


@pytest.mark.parametrize('name', LOSSES)
def test_autocast_rounds_nothing(name):
    s, t = torch.randn(2, 9, 24), torch.randn(2, 9, 24)
    with torch.autocast('cpu', torch.bfloat16):
        loss = LOSSES[name](s, t)
    assert torch.isclose(loss, LOSSES[name](s, t), rtol=1e-6)


@pytest.mark.parametrize('name', LOSSES)
def test_nothing_to_compare_keeps_the_graph(name):
    s = torch.zeros(0, 7, 12, requires_grad=True)
    loss = LOSSES[name](s, torch.zeros(0, 7, 12))
    loss.backward()
    assert loss == 0
    assert s.grad is not None


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda x: qkv_heads(x(1, 4, 10), 2), 'tap the module named qkv'),
        (lambda x: attention_rows(x(1, 2, 4, 3), x(1, 2, 5, 3)), 'both'),
        (lambda x: attention_rows(*[x(1, 2, 4, 3)] * 2, 'first'), "'class', 'mean'"),
        (lambda x: attention_rows(*[x(1, 2, 4, 3)] * 2, prefix_tokens=0), 'no class token'),
        (lambda x: class_gram_row(x(1, 4, 3), norm_axis='batch'), 'norm_axis'),
        (lambda x: class_gram_row(x(1, 4, 3), 4), 'prefix'),
        (lambda x: attention_probe(x(1, 5, 3), x(1, 6, 3)), 'resize the grid'),
        (lambda x: attention_consistency(x(1, 2, 1, 5), x(1, 2, 1, 6)), 'resize the rows'),
        (lambda x: attention_consistency(x(1, 2, 5), x(1, 2, 5)), 'heads, R, L'),
        (lambda x: attention_consistency(*[x(1, 2, 1, 5)] * 2, distance='l1'), 'distance'),
        (lambda x: attention_uniformity(x(1, 5), 5), 'prefix'),
        (lambda x: head_attention(x(1, 2, 1, 5), x(1, 3, 1, 5)), 'attention_consistency'),
        (lambda x: head_attention(*[x(1, 2, 1, 5)] * 2, distance='l1'), 'distance'),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros)
