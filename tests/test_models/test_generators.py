"""Generators: images of any size, whose weights do not know it."""

import pytest
import torch

from mmdfkd.models.generators import ConvGenerator, TransformerGenerator
from mmdfkd.models.generators.transformer import grid_positions
from mmdfkd.registry import MODELS

SMALL = dict(
    ConvGenerator=dict(noise_dims=6, channels=(8, 8, 4), base=4),
    TransformerGenerator=dict(
        noise_dims=6, channels=(8, 8, 4), depths=(1, 1, 0), num_heads=2, base=4
    ),
)


def small(kind: str, **changes):
    net = MODELS.build(dict(type=f'mmdfkd.{kind}', **{**SMALL[kind], **changes}))
    net.reset(torch.Generator().manual_seed(0))
    return net


@pytest.mark.parametrize('kind', SMALL)
@pytest.mark.parametrize('size', [(16, 16), (28, 28), (17, 40), (3, 5)])
def test_any_size_in_the_range_of_pixels(kind, size):
    noise = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    images = small(kind)(noise, size)
    assert images.shape == (3, 3, *size)
    assert images.min() >= 0 and images.max() <= 1
    # Not grey, and not one image for every noise.
    assert images.std() > 0.05 and (images[0] - images[1]).abs().mean() > 0.01


def test_the_grid_doubles_as_published():
    net = ConvGenerator()
    assert net.sizes((32, 32), 2) == [(16, 16), (32, 32)]
    assert net.stem.out_features == 128 * 8 * 8
    deep = ConvGenerator(channels=(8,) * 6, base=7)
    assert [h for h, _ in deep.sizes((224, 224), 5)] == [14, 28, 56, 112, 224]
    assert ConvGenerator(base=(4, 8)).sizes((16, 32), 2) == [(8, 16), (16, 32)]


@pytest.mark.parametrize('kind', SMALL)
def test_every_weight_gets_a_gradient(kind):
    net = small(kind, label_dims=3)
    noise, codes = torch.randn(4, 6), torch.randn(4, 3)
    (net(noise, (8, 8), codes) * torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize('kind', SMALL)
def test_weights_are_a_function_of_the_seed_alone(kind):
    torch.manual_seed(3)
    first = small(kind)
    torch.manual_seed(4)
    second = small(kind)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    before = torch.get_rng_state()
    second.reset(torch.Generator().manual_seed(7))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(second.stem.weight, first.stem.weight)


@pytest.mark.parametrize('kind', SMALL)
def test_an_image_does_not_depend_on_its_batch_where_it_should_not(kind):
    noise = torch.randn(4, 6)
    for net in (small(kind).eval(), small(kind, norm='group')):
        alone = torch.cat([net(row[None], (12, 12)) for row in noise])
        torch.testing.assert_close(net(noise, (12, 12)), alone)
    # Batch statistics, in training.
    net = small(kind)
    assert (net(noise, (12, 12))[:2] - net(noise[:2], (12, 12))).abs().max() > 1e-3


def test_attention_carries_a_change_across_the_image():
    """A convolution sees 3 x 3; through a block every place depends on every other."""
    x = torch.randn(1, 8, 9, 9, requires_grad=True)
    net = small('TransformerGenerator')
    out = net._attend(x, net.blocks[0])
    (gradient,) = torch.autograd.grad(out[0, :, 0, 0].sum(), x)
    assert (gradient[0, :, 8, 8].abs() > 0).any()


def test_positions_are_those_of_the_place_in_the_image():
    like = torch.zeros(1)
    small_grid, fine = grid_positions((3, 5), 8, like), grid_positions((9, 15), 8, like)
    assert small_grid.shape == (3, 5, 8)
    torch.testing.assert_close(fine[1::3, 1::3], small_grid)
    flat = fine.flatten(0, 1)
    assert (torch.cdist(flat, flat) + torch.eye(len(flat)) * 9).min() > 1e-2


class TestNoisyLayers:
    def test_differ_by_layer_and_by_label_and_not_by_noise(self):
        net = small('ConvGenerator', label_dims=4, noisy_layers=3)
        codes = torch.eye(4)[[0, 0, 1]]
        layers = torch.tensor([0, 2, 0])
        latent = net.latent(torch.randn(3, 6), codes, layers)
        for i, layer in enumerate(layers.tolist()):
            wanted = net.latent.weight[layer] @ codes[i] + net.latent.bias[layer]
            torch.testing.assert_close(latent[i], wanted)
        assert torch.equal(latent, net.latent(torch.randn(3, 6), codes, layers))
        assert not torch.equal(latent[0], latent[1]) and not torch.equal(latent[0], latent[2])

    def test_renewed_alone(self):
        net = small('ConvGenerator', label_dims=4, noisy_layers=3)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        net.renew(torch.Generator().manual_seed(5))
        changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
        assert changed == {'latent.weight'}

    def test_outputs_are_of_unit_size(self):
        net = ConvGenerator(noise_dims=400, label_dims=64, noisy_layers=2, channels=(4, 4))
        net.reset(torch.Generator().manual_seed(0))
        latent = net.latent(None, torch.randn(50, 64), torch.zeros(50, dtype=torch.long))
        assert 0.9 < latent.std() < 1.1


class TestBadInput:
    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(noise_dims=0), 'noise_dims'),
            (dict(channels=(8,)), 'enlargement'),
            (dict(norm='layer'), "'batch' or 'group'"),
            (dict(noisy_layers=2), 'label_dims'),
        ],
    )
    def test_is_named(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            ConvGenerator(**kwargs)

    def test_heads_that_do_not_divide(self):
        with pytest.raises(ValueError, match='heads'):
            TransformerGenerator(channels=(10, 8), depths=(1, 0), num_heads=4)
        with pytest.raises(ValueError, match='depths'):
            TransformerGenerator(depths=(1, 1))

    def test_labels_it_does_not_know(self):
        with pytest.raises(ValueError, match='label_dims=0'):
            small('ConvGenerator')(torch.randn(2, 6), (8, 8), torch.randn(2, 3))
        with pytest.raises(ValueError, match='no codes'):
            small('ConvGenerator', label_dims=3)(torch.randn(2, 6), (8, 8))
