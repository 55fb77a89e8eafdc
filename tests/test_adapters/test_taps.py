"""Taps record what named modules return and leave nothing behind."""

import pytest
import torch
from torch import nn

from mmdfkd.adapters.taps import tapped


def _hooks(net):
    return sum(len(m._forward_hooks) for m in net.modules())


def test_records_outputs_and_removes_its_hooks():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    x = torch.ones(4, 2)
    with tapped(net, ['0', '1']) as caught:
        assert _hooks(net) == 2
        net(x)
    assert _hooks(net) == 0
    assert set(caught) == {'0', '1'}
    assert torch.equal(caught['0'], net[0](x)) and torch.equal(caught['1'], net[0](x).relu())
    assert caught['0'].requires_grad
    net(2 * x)
    assert torch.equal(caught['0'], net[0](x))


def test_records_what_enters_a_module():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    x = torch.ones(4, 2)
    with tapped(net, ['1:input', '1']) as caught:
        net(x)
    assert set(caught) == {'1:input', '1'}
    assert torch.equal(caught['1:input'], net[0](x)) and torch.equal(caught['1'], net(x))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    with pytest.raises(KeyError, match="no module '2'"), tapped(net, ['2:input']):
        pass


def test_hooks_go_after_an_error():
    net = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(RuntimeError), tapped(net, ['0']):
        net(torch.ones(1, 5))
    assert _hooks(net) == 0


def test_unknown_names_are_answered_with_near_ones():
    net = nn.ModuleDict(dict(body=nn.ModuleDict(dict(blocks=nn.Sequential(nn.Linear(1, 1))))))
    with (
        pytest.raises(KeyError, match=r"no module 'blocks'.*body\.blocks"),
        tapped(net, ['blocks']),
    ):
        pass
    with pytest.raises(KeyError), tapped(net, ['body.blocks.0', 'nowhere']):
        pass
    assert _hooks(net) == 0


def test_a_block_out_of_range_is_answered_with_the_range():
    net = nn.ModuleDict(
        dict(body=nn.ModuleDict(dict(blocks=nn.Sequential(*[nn.ReLU() for _ in range(4)]))))
    )
    for name in ('body.blocks.4', 'body.blocks.4.attn.qkv:input'):
        with (
            pytest.raises(KeyError, match=r"'body\.blocks' has 0 to 3"),
            tapped(net, [name]),
        ):
            pass
    with (
        pytest.raises(KeyError, match=r"'body' has no 'layers', but \['blocks'\]"),
        tapped(net, ['body.layers.0']),
    ):
        pass
