"""SimpleFPN and its LayerNorm against the published pyramid, written here a second time."""

import math

import pytest
import torch

from mmdfkd.models import LayerNorm2d, SimpleFPN


def build(**options):
    torch.manual_seed(0)
    neck = SimpleFPN(**{'in_channels': 8, 'out_channels': 6, **options}).double()
    for p in neck.parameters():
        p.data.normal_(std=0.5)
    return neck


def layer_norm(x, weights, name, eps=1e-5):
    mean = x.mean(0)
    variance = ((x - mean) ** 2).mean(0)
    x = (x - mean) / (variance + eps) ** 0.5
    return x * weights[f'{name}.weight'][:, None, None] + weights[f'{name}.bias'][:, None, None]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def upsample(x, weights, name):
    """Transposed 2x2 convolution of stride 2: each pixel writes its own 2x2 square."""
    kernel, bias = weights[f'{name}.weight'], weights[f'{name}.bias']
    out = torch.zeros(kernel.shape[1], 2 * x.shape[1], 2 * x.shape[2], dtype=torch.float64)
    for dy in range(2):
        for dx in range(2):
            out[:, dy::2, dx::2] = torch.einsum('chw,cd->dhw', x, kernel[:, :, dy, dx])
    return out + bias[:, None, None]


def lateral(x, weights, i):
    x = torch.einsum('chw,dc->dhw', x, weights[f'lateral_convs.{i}.conv.weight'][:, :, 0, 0])
    x = layer_norm(x, weights, f'lateral_convs.{i}.norm_layer')
    kernel = weights[f'fpn_convs.{i}.conv.weight']
    _, h, w = x.shape
    padded = torch.zeros(x.shape[0], h + 2, w + 2, dtype=torch.float64)
    padded[:, 1:-1, 1:-1] = x
    out = 0
    for dy in range(3):
        for dx in range(3):
            part = padded[:, dy : dy + h, dx : dx + w]
            out = out + torch.einsum('chw,dc->dhw', part, kernel[:, :, dy, dx])
    return layer_norm(out, weights, f'fpn_convs.{i}.norm_layer')


def rescaled(x, weights, i, factor):
    if factor == 4:
        x = upsample(x, weights, f'fpn{i}.0')
        return upsample(gelu(layer_norm(x, weights, f'fpn{i}.1')), weights, f'fpn{i}.3')
    if factor == 2:
        return upsample(x, weights, f'fpn{i}.0')
    if factor == 0.5:
        corners = [x[:, dy::2, dx::2] for dy in range(2) for dx in range(2)]
        return torch.stack(corners).amax(0)
    return x


@pytest.mark.parametrize(
    ('factors', 'num_outs'), [((4, 2, 1, 0.5), 5), ((2, 1, 0.5), 3), ((1,), 2)]
)
def test_equals_the_published_pyramid(factors, num_outs):
    neck = build(scale_factors=factors, num_outs=num_outs)
    weights = {k: v.detach() for k, v in neck.state_dict().items()}
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    outs = neck((x * 0, x))  # of several maps the last counts
    assert len(outs) == num_outs
    for b in range(2):
        expected = [
            lateral(rescaled(x[b], weights, i, factor), weights, i - 1)
            for i, factor in enumerate(factors, start=1)
        ]
        while len(expected) < num_outs:
            expected.append(expected[-1][:, ::2, ::2])
        for out, level in zip(outs, expected, strict=True):
            assert torch.allclose(out[b], level, atol=1e-11, rtol=1e-11)


def test_fewer_channels_between_the_convolutions():
    neck = build(lateral_channels=4)
    weights = {k: v.detach() for k, v in neck.state_dict().items()}
    assert weights['fpn_convs.0.conv.weight'].shape == (6, 4, 3, 3)
    x = torch.randn(1, 8, 4, 6, dtype=torch.float64)
    expected = lateral(rescaled(x[0], weights, 1, 4), weights, 0)
    assert torch.allclose(neck(x)[0][0], expected, atol=1e-11, rtol=1e-11)


def test_a_map_or_a_tuple_of_maps():
    neck, x = build(), torch.randn(1, 8, 4, 4, dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(neck(x), neck((x,)), strict=True))


def test_errors():
    with pytest.raises(ValueError, match=r'4, 2, 1 or 0\.5, not by 3'):
        build(scale_factors=(3,))
    with pytest.raises(ValueError, match='num_outs=2 is less than the 4'):
        build(num_outs=2)


def test_layer_norm_2d():
    norm = LayerNorm2d(5).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    weights = {f'n.{k}': v.detach() for k, v in norm.state_dict().items()}
    for b in range(2):
        assert torch.allclose(norm(x)[b], layer_norm(x[b], weights, 'n', 1e-6), atol=1e-12)
    assert norm(x).is_contiguous()
