"""Attention that can be a convolution, against its equation and mmpretrain's plain ViT."""

import math

import mmdfkd  # noqa: F401  isort: skip (mends torchvision before mmpretrain imports it)
import pytest
import torch
from mmpretrain.models.backbones import DistilledVisionTransformer

from mmdfkd.models import ConvAttentionViT
from mmdfkd.models.backbones.conv_attention_vit import ConvAttention

ARCH = dict(embed_dims=16, num_layers=3, num_heads=4, feedforward_channels=24)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_attention_equation():
    """On a grid of unequal sides, with two prefix tokens, whose scores are 0."""
    attention = ConvAttention(6, 2, sharpness=0.7, drop=0.0).double()
    with torch.no_grad():
        attention.centres.copy_(torch.tensor([[0.3, -1.0], [2.0, 0.5]]))
        attention.sharpness.copy_(torch.tensor([0.7, 1.3]))
    grid, extra = (2, 3), 2
    x = torch.randn(2, extra + 6, 6, dtype=torch.float64)
    places = [None] * extra + [(r, c) for r in range(2) for c in range(3)]
    out = attention(x, grid)
    for image, row in zip(x, out, strict=True):
        q, k, v = attention.qkv(image).view(-1, 3, 2, 3).unbind(1)
        merged = []
        for i, here in enumerate(places):
            heads = []
            for h in range(2):
                logits = []
                for j, there in enumerate(places):
                    logit = (q[i, h] @ k[j, h]).item() / math.sqrt(3)
                    if here and there:
                        dy, dx = (b - a for a, b in zip(here, there, strict=True))
                        cy, cx = attention.centres[h].tolist()
                        far = (dy - cy) ** 2 + (dx - cx) ** 2
                        logit -= attention.sharpness[h].item() * far
                    logits.append(logit)
                exp = [math.exp(v) for v in logits]
                heads += [
                    sum(e * v[j, h, c].item() for j, e in enumerate(exp)) / sum(exp)
                    for c in range(3)
                ]
            merged.append(heads)
        expected = attention.proj(torch.tensor(merged, dtype=torch.float64))
        assert torch.allclose(row, expected, atol=1e-10)


def test_sharp_heads_are_a_convolution():
    """Each head reads the patch at its centre, wherever it is."""
    attention = ConvAttention(8, 4, sharpness=60.0, drop=0.0).double()
    near = {(0, 0), (-1, 0), (0, -1), (0, 1)}
    assert {tuple(int(v) for v in c) for c in attention.centres.tolist()} == near
    x = torch.randn(1, 25, 8, dtype=torch.float64)
    value = attention.qkv(x).view(5, 5, 3, 4, 2)[:, :, 2]
    expected = torch.stack(
        [
            value.roll((-int(dy), -int(dx)), (0, 1))[:, :, h]
            for h, (dy, dx) in enumerate(attention.centres.tolist())
        ],
        2,
    ).flatten(2)
    out = attention(x, (5, 5)).view(5, 5, 8)
    inner = slice(1, 4)
    assert torch.allclose(out[inner, inner], attention.proj(expected)[inner, inner], atol=1e-9)


def test_without_sharpness_it_is_mmpretrains():
    plain = DistilledVisionTransformer(arch=ARCH, img_size=24, patch_size=8)
    plain.eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net = ConvAttentionViT(ARCH, conv_layers=2, sharpness=0.0, img_size=24, patch_size=8).eval()
    net.take_over(plain.state_dict())
    images = torch.rand(2, 3, 24, 24)
    for a, b in zip(net(images)[0], plain(images)[0], strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert [hasattr(layer.attn, 'centres') for layer in net.layers] == [True, True, False]


def test_it_trains_and_runs_in_half_precision():
    net = ConvAttentionViT(ARCH, conv_layers=1, img_size=24, patch_size=8)
    net.init_weights()
    with torch.autocast('cpu', torch.bfloat16):
        (tokens,) = net(torch.rand(2, 3, 24, 24))
    sum(token.float().square().sum() for token in tokens).backward()
    attention = net.layers[0].attn
    for parameter in (attention.centres, attention.sharpness, net.dist_token):
        assert parameter.grad.any()
        assert torch.isfinite(parameter.grad).all()


def test_dropout_is_for_training():
    net = ConvAttentionViT(ARCH, conv_layers=1, attn_drop=0.5, img_size=24, patch_size=8)
    net.init_weights()
    images = torch.rand(1, 3, 24, 24)
    assert not torch.equal(net(images)[0][0], net(images)[0][0])
    net.eval()
    assert torch.equal(net(images)[0][0], net(images)[0][0])


def test_errors():
    with pytest.raises(ValueError, match='conv_layers=4 of 3'):
        ConvAttentionViT(ARCH, conv_layers=4)
