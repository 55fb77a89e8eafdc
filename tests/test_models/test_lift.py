"""Necks that lift a narrow student to its teacher's width."""

import pytest
import torch
from mmengine.model import BaseModule

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


@pytest.mark.parametrize('kind', ['lift', 'wide'])
def test_an_init_cfg_of_the_whole_model_leaves_the_isometry(kind):
    """As mmpretrain's DeiTs have it: TruncNormal for every linear layer."""

    class Model(BaseModule):
        def __init__(self, own=None):
            super().__init__(dict(type='Constant', layer='Linear', val=0.25, bias=0.5))
            self.neck = Lift(4, 6, own) if kind == 'lift' else WideLast(4, 6, 2, init_cfg=own)

        @property
        def proj(self):
            return (self.neck if kind == 'lift' else self.neck.lift).proj

    torch.manual_seed(0)
    model = Model()
    model.init_weights()
    assert torch.allclose(model.proj.weight.t() @ model.proj.weight, torch.eye(4), atol=1e-5)
    assert not model.proj.bias.any()
    if kind == 'wide':  # the rest is as the model says
        assert (model.neck.mlp[0].weight == 0.25).all()
        return
    own = Model(dict(type='Constant', layer='Linear', val=2.0))
    own.init_weights()
    assert (own.proj.weight == 2).all()
    # Loaded weights stay.
    with torch.no_grad():
        model.proj.weight.fill_(3.0)
    model.neck.init_weights()
    assert (model.proj.weight == 3).all()


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
