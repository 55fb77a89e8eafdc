"""Heads weighed by their gradients, against norms worked out by hand."""

import pytest
import torch
import toy
from mmengine.registry import MODELS
from torch import nn

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.distillers.balance import GradientBalance
from mmdfkd.distillers.student import Student


class Scaled(nn.Module):
    """What the balance reads of a head."""

    def __init__(self, loss_weight=1.0):
        super().__init__()
        self.factor, self.iteration = loss_weight, 0


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))


def losses_of(net, heads, scales):
    """``w_h s_h sum(theta)``: its gradient with respect to each of the 4 entries is ``w_h s_h``."""
    theta = net.backbone[1].weight
    return [
        {f'loss_{i}': head.factor * scale * theta.sum()}
        for i, (head, scale) in enumerate(zip(heads, scales, strict=True))
    ]


def test_factors_by_hand():
    net = TwoLayers()
    heads = [Scaled(1.0), Scaled(0.5), Scaled(2.0)]
    balance = GradientBalance(every=2, momentum=0.75)
    balance.bind(net, heads, [dict(net.named_parameters())] * 3)
    assert torch.equal(balance.factors(), torch.ones(3))

    def step(iteration, scales, places=(0, 1, 2)):
        working = [heads[i] for i in places]
        for head in working:
            head.iteration = iteration
        return balance(losses_of(net, working, scales), working, list(places))

    # |d L_h / d theta| = 2 s_h: the weights 1, 0.5 and 2 play no part.
    parts = step(0, (3.0, 300.0, 0.03))
    torch.testing.assert_close(balance.norms, torch.tensor([6.0, 600.0, 0.06]))
    torch.testing.assert_close(balance.factors(), torch.tensor([1.0, 0.01, 100.0]))
    grads = [
        torch.autograd.grad(sum(part.values()), net.backbone[1].weight, retain_graph=True)[0].norm()
        for part in parts
    ]
    # The first head's own, then the shares that the weights ask for.
    torch.testing.assert_close(torch.stack(grads), torch.tensor([6.0, 3.0, 12.0]))
    # Between two measures nothing changes; then a quarter of the new norm comes in.
    step(1, (7.0, 7.0, 7.0))
    torch.testing.assert_close(balance.norms, torch.tensor([6.0, 600.0, 0.06]))
    step(2, (5.0, 100.0), places=(0, 1))
    expected = torch.tensor([0.75 * 6 + 0.25 * 10, 0.75 * 600 + 0.25 * 200, 0.06])
    torch.testing.assert_close(balance.norms, expected)
    # Nothing to compare in a batch: the averages stay.
    step(4, (0.0, 0.0), places=(0, 1))
    torch.testing.assert_close(balance.norms, expected)
    assert set(balance.log()) == {'balance_Scaled0', 'balance_Scaled1', 'balance_Scaled2'}


def test_gradients_that_vanish_in_half_precision_are_measured():
    net = TwoLayers().half()
    heads = [Scaled(), Scaled()]
    balance = GradientBalance()
    balance.bind(net, heads, [dict(net.named_parameters())] * 2)
    theta = net.backbone[1].weight
    # A mean of a loss in single precision; 1e-8 is zero in half.
    losses = [{'loss': (theta * s).float().sum() * 1e-8} for s in (1.0, 4.0)]
    balance(losses, heads, [0, 1])
    torch.testing.assert_close(balance.norms, torch.tensor([2e-8, 8e-8]), rtol=0.01, atol=0)


def test_a_head_that_comes_later_is_measured_at_once():
    net = TwoLayers()
    heads = [Scaled(), Scaled()]
    balance = GradientBalance(every=10)
    balance.bind(net, heads, [dict(net.named_parameters())] * 2)
    balance(losses_of(net, heads[:1], (1.0,)), heads[:1], [0])
    heads[1].iteration = 3
    balance(losses_of(net, heads[1:], (4.0,)), heads[1:], [1])
    torch.testing.assert_close(balance.factors(), torch.tensor([1.0, 0.25]))


def test_the_state_is_restored():
    net = TwoLayers()
    heads = [Scaled(), Scaled()]
    first, second = GradientBalance(), GradientBalance()
    for balance in (first, second):
        balance.bind(net, heads, [dict(net.named_parameters())] * 2)
    first(losses_of(net, heads, (1.0, 8.0)), heads, [0, 1])
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.factors(), torch.tensor([1.0, 0.125]))


def test_layer_out_of_reach():
    net, heads = TwoLayers(), [Scaled(), Scaled()]
    whole = dict(net.named_parameters())
    part = {k: v for k, v in whole.items() if k.startswith('backbone.0.')}
    balance = GradientBalance()
    balance.bind(net, heads, [whole, part])
    assert balance._theta[0] is net.backbone[0].weight
    with pytest.raises(ValueError, match="does not reach the layer 'backbone.1'"):
        GradientBalance('backbone.1').bind(net, heads, [whole, part])
    with pytest.raises(ValueError, match="no layer 'neck'"):
        GradientBalance('neck').bind(net, heads, [whole, part])
    with pytest.raises(ValueError, match='no weight of the backbone'):
        GradientBalance().bind(net, heads, [whole, {}])
    for wrong in (dict(every=0), dict(momentum=1.0)):
        with pytest.raises(ValueError, match='balance'):
            GradientBalance(**wrong)


def test_on_a_classifier():
    """Whatever the units of a loss: a thousandfold scale inside a head changes no gradient."""
    model = toy.classifier_model()
    normalizer = Normalizer.from_config(toy.whole(model, 'mmpretrain'))
    teacher = build_adapter(toy.build(model, seed=1, scope='mmpretrain'), normalizer)
    images = toy.images(2, size=32)

    def gradient(scale, balance):
        net = toy.build(model, seed=2, scope='mmpretrain')
        heads = [
            dict(type='mmdfkd.LogitHead', temperature=1.0),
            dict(type='mmdfkd.FeatureHead', taps_student=['backbone.layers.1'], loss_weight=0.5),
        ]
        torch.manual_seed(0)
        student = Student(net, normalizer, [MODELS.build(h) for h in heads], balance)
        student.build_aligners(teacher, (32, 32))
        student.bind_balance(teacher, (32, 32))
        head = student.heads[1]
        plain = head.losses
        head.losses = lambda *args: {k: scale * v for k, v in plain(*args).items()}
        needs = student.active_needs
        seen = teacher.observe(images, needs.taps_teacher, needs.teacher_response)
        losses = student(images, seen, None)
        sum(losses.values()).backward()
        return net.backbone.layers[0].attn.qkv.weight.grad

    one, thousand = (gradient(s, GradientBalance()) for s in (1.0, 1000.0))
    torch.testing.assert_close(one, thousand, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(gradient(1.0, None), gradient(1000.0, None), rtol=0.1)
