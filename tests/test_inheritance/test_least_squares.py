from itertools import combinations

import torch

from mmdfkd.inheritance.least_squares import Moments, Refit, channel_fit, keep_inputs, reconstruct


def moments_of(x):
    moments = Moments(x.shape[1])
    moments.add(x)
    return moments


def test_refit_finds_the_layer_behind_the_targets():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(600, 8), torch.randn(3, 8), torch.randn(3)
    fit = Refit(torch.zeros(3, 8), torch.zeros(3))
    for i, part in enumerate(x.split(100)):
        fit.add(part, part @ weight.t() + bias, held_out=i % 3 == 2)
    own, own_bias = fit.solve()
    torch.testing.assert_close(own, weight.double(), atol=2e-3, rtol=0)
    torch.testing.assert_close(own_bias, bias.double(), atol=2e-3, rtol=0)


def test_refit_leaves_an_exact_layer_alone():
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(40, 30).double(),
        torch.randn(3, 30).double(),
        torch.randn(3).double(),
    )
    fit = Refit(weight, bias)
    fit.add(x, x @ weight.t() + bias)
    own, own_bias = fit.solve()
    torch.testing.assert_close(own, weight, atol=1e-12, rtol=0)
    torch.testing.assert_close(own_bias, bias, atol=1e-12, rtol=0)


def test_refit_refuses_what_does_not_hold_elsewhere():
    torch.manual_seed(0)
    weight = torch.randn(2, 20)
    fit = Refit(weight, None)
    for part in (0, 1):
        # Few rows, and targets that are the present layer's plus noise: nothing to learn.
        x = torch.randn(25 + 100 * part, 20)
        fit.add(x, x @ weight.t() + torch.randn(len(x), 2), held_out=bool(part))
    own, bias = fit.solve()
    assert bias is None
    x = torch.randn(500, 20)
    change = ((own - weight.double()) @ x.double().t()).square().mean()
    assert change < 0.35


def brute_force(x, weight, kept):
    y = (x - x.mean(0)) @ weight.t()
    errors = {}
    for columns in combinations(range(x.shape[1]), kept):
        part = (x - x.mean(0))[:, columns]
        errors[columns] = float((y - part @ torch.linalg.lstsq(part, y).solution).square().sum())
    return errors


def test_keep_inputs_is_near_the_best_choice():
    torch.manual_seed(0)
    mixing = torch.randn(7, 7).double() * torch.logspace(0, -2, 7).double()
    x = torch.randn(300, 7).double() @ mixing + torch.randn(7).double()
    weight = torch.randn(4, 7).double()
    errors = brute_force(x, weight, 4)
    kept, read, offset = keep_inputs(moments_of(x), weight, 4)
    assert tuple(kept.tolist()) in sorted(errors, key=errors.get)[:3]
    wanted = x @ weight.t()
    got = x[:, kept] @ (weight @ read).t() + weight @ offset
    assert float((wanted - got).square().sum()) < 1.1 * errors[tuple(kept.tolist())] + 1e-3
    assert torch.equal(read[kept], torch.eye(4).double()) and not offset[kept].any()


def test_keep_inputs_drops_what_others_imply():
    torch.manual_seed(0)
    x = torch.randn(200, 6).double()
    # Group 2 (inputs 4 and 5) repeats group 0; group 1 is weak but its own.
    x[:, 4:], x[:, 2:4] = x[:, :2] + 3, x[:, 2:4] * 0.5
    weight = torch.ones(1, 6).double()
    kept, read, offset = keep_inputs(moments_of(x), weight, 2, group=2)
    assert 1 in kept.tolist() and len(kept) == 2
    columns = (kept[:, None] * 2 + torch.arange(2)).flatten()
    torch.testing.assert_close(x[:, columns] @ read.t() + offset, x, atol=5e-3, rtol=0)


def test_nothing_changes_when_all_is_kept():
    x = torch.randn(50, 5).double()
    kept, read, offset = keep_inputs(moments_of(x), torch.randn(2, 5), 5)
    assert kept.tolist() == list(range(5))
    assert torch.equal(read, torch.eye(5).double()) and not offset.any()


def test_reconstruct_is_least_squares():
    torch.manual_seed(0)
    x = torch.randn(400, 5).double() @ torch.randn(5, 5).double() + 2
    columns = torch.tensor([0, 3])
    read, offset = reconstruct(moments_of(x), columns)
    design = torch.cat([x[:, columns], torch.ones(400, 1).double()], 1)
    best = torch.linalg.lstsq(design, x).solution
    torch.testing.assert_close(read, best[:2].t(), atol=5e-3, rtol=0)
    torch.testing.assert_close(offset, best[2], atol=2e-2, rtol=0)


def test_channel_fit():
    torch.manual_seed(0)
    x = torch.randn(500, 3)
    weight, bias = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([1.0, 0.0, 3.0])
    own = channel_fit(
        [x[:250], x[250:]], [x[:250] * weight + bias, x[250:] * weight + bias], *torch.ones(2, 3)
    )
    torch.testing.assert_close(own[0], weight.double(), atol=5e-3, rtol=0)
    torch.testing.assert_close(own[1], bias.double(), atol=5e-3, rtol=0)
