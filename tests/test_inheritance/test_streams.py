import pytest
import torch
import torch.nn.functional as F

from mmdfkd.inheritance.streams import (
    IdentityMap,
    NormStatistics,
    RotationMap,
    SelectionMap,
    zero_sum_basis,
)

WIDE, NARROW, EPS = 12, 7, 0.05


def test_zero_sum_basis_is_orthonormal():
    z = zero_sum_basis(9)
    assert z.shape == (9, 8)
    torch.testing.assert_close(z.t() @ z, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(z.sum(0), torch.zeros(8, dtype=torch.float64))


def stream(seed=0):
    """Tokens whose varying part lies in 6 directions, with a mean, and a norm with its reader."""
    torch.manual_seed(seed)
    directions = torch.linalg.qr(
        zero_sum_basis(WIDE) @ torch.randn(WIDE - 1, NARROW - 1).double()
    ).Q
    tokens = torch.randn(50, NARROW - 1).double() @ directions.t() + torch.randn(50, 1).double()
    weight, bias = 1 + 0.5 * torch.randn(WIDE).double(), torch.randn(WIDE).double()
    return tokens, weight, bias, torch.randn(5, WIDE).double()


def test_rotation_is_exact_where_it_keeps_all_energy():
    tokens, weight, bias, reader = stream()
    statistics = NormStatistics(WIDE)
    statistics.add(tokens)
    directions, energy = statistics.directions(NARROW - 1)
    assert energy == pytest.approx(1)
    rotation = RotationMap(directions)
    readers, own_weight, own_bias = rotation.through_norm(weight, bias)
    own = tokens @ rotation.write.t()
    # A large epsilon on purpose: the scale of the map makes the same one right for both widths.
    theirs = F.layer_norm(tokens, (WIDE,), weight, bias, EPS) @ reader.t()
    ours = F.layer_norm(own, (NARROW,), own_weight, own_bias, EPS) @ (reader @ readers).t()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    # Readers without a norm: everything, the tokens' mean included.
    torch.testing.assert_close(own @ rotation.read.t(), tokens, rtol=0, atol=1e-10)
    torch.testing.assert_close(own.mean(1), tokens.mean(1))


def test_rotation_leaves_zero_tokens_behind_the_norm_alone():
    # Windows are padded with zeros between norm and qkv: no bias may have moved into the reader.
    _, weight, bias, reader = stream()
    directions = zero_sum_basis(WIDE)[:, : NARROW - 1]
    readers, _, own_bias = RotationMap(directions).through_norm(weight, bias)
    torch.testing.assert_close(readers @ own_bias, bias)
    assert not (torch.zeros(1, NARROW).double() @ (reader @ readers).t()).any()


def test_rotation_error_grows_with_the_energy_it_drops():
    torch.manual_seed(1)
    tokens = torch.randn(400, WIDE).double() * torch.linspace(2, 0.1, WIDE).double()
    statistics = NormStatistics(WIDE)
    statistics.add(tokens)
    one, zero = torch.ones(WIDE).double(), torch.zeros(WIDE).double()
    theirs = F.layer_norm(tokens, (WIDE,))
    errors, energies = [], []
    for narrow in (4, 7, 10, 12):
        directions, energy = statistics.directions(narrow - 1)
        rotation = RotationMap(directions)
        readers, weight, bias = rotation.through_norm(one, zero)
        ours = F.layer_norm(tokens @ rotation.write.t(), (narrow,), weight, bias) @ readers.t()
        errors.append(float((ours - theirs).square().mean()))
        energies.append(energy)
    assert errors == sorted(errors, reverse=True) and energies == sorted(energies)
    assert errors[-1] < 1e-9 and energies[-1] == pytest.approx(1)


def test_selection_and_identity_keep_the_affine():
    _, weight, bias, _ = stream()
    index = torch.tensor([1, 4, 9])
    readers, own_weight, own_bias = SelectionMap(index, WIDE).through_norm(weight, bias)
    torch.testing.assert_close(own_weight, weight[index])
    torch.testing.assert_close(own_bias, bias[index])
    assert readers.shape == (WIDE, 3) and readers.sum() == 3
    readers, own_weight, _ = IdentityMap(WIDE).through_norm(weight, bias)
    assert torch.equal(readers, torch.eye(WIDE).double()) and torch.equal(own_weight, weight)
