"""Necks that lift a narrow student to its teacher's width."""

import pytest
import torch

from mmdfkd.models.necks import Lift, WideLast


def test_lift_maps_the_channels_of_vectors_tokens_and_maps():
    torch.manual_seed(0)
    neck = Lift(4, 6)
    maps = torch.randn(2, 4, 3, 5)
    tokens = maps.flatten(2).transpose(1, 2)
    lifted_map, lifted, vector = neck((maps, tokens, tokens[:, 0]))
    weight, bias = neck.proj.weight, neck.proj.bias
    assert torch.allclose(lifted, tokens @ weight.t() + bias, atol=1e-6)
    assert torch.allclose(lifted_map.flatten(2).transpose(1, 2), lifted, atol=1e-6)
    assert torch.allclose(vector, lifted[:, 0], atol=1e-6)
    # It starts as an isometry.
    assert torch.allclose(lifted.norm(dim=-1), tokens.norm(dim=-1), atol=1e-5)


def test_wide_last_is_a_pre_norm_block():
    torch.manual_seed(0)
    neck = WideLast(4, 6, num_heads=2, prefix_tokens=2).double()
    assert neck.mlp[0].out_features == 24
    tokens = torch.randn(3, 7, 4, dtype=torch.float64)
    x = neck.lift.proj(tokens)
    q, k, v = neck.attn.qkv(neck.norm1(x)).view(3, 7, 3, 2, 3).unbind(2)
    weights = (torch.einsum('bihd,bjhd->bhij', q, k) / 3**0.5).softmax(-1)
    x = x + neck.attn.proj(torch.einsum('bhij,bjhd->bihd', weights, v).flatten(2))
    x = neck.norm(x + neck.mlp(neck.norm2(x)))
    (out,) = neck((tokens,))
    assert torch.allclose(out, x[:, 0], atol=1e-12)
    neck.prefix_tokens = 0
    assert torch.allclose(neck(tokens)[0], x.mean(1), atol=1e-12)


def test_errors():
    with pytest.raises(ValueError, match='4 heads'):
        WideLast(4, 6, num_heads=4)
    with pytest.raises(ValueError, match="out_type='raw'"):
        WideLast(4, 6, num_heads=2)(torch.zeros(2, 4))
