"""Merging of patches against its equations, and a ViT that merges on the way."""

import math

import mmdfkd  # noqa: F401  isort: skip (mends torchvision before mmpretrain imports it)
import pytest
import torch
from mmpretrain.models.backbones import DistilledVisionTransformer, VisionTransformer

from mmdfkd.evaluation.cost import count_flops
from mmdfkd.models import SlimmedViT
from mmdfkd.models.layers import TokenRecovery, TokenSlimming

ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=24)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module


def gelu(v):
    return v * (1 + math.erf(v / math.sqrt(2))) / 2


def linear(layer, row):
    weights = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(ws, row, strict=True)) + b for ws, b in weights]


def norm(layer, row):
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row) + layer.eps)
    affine = zip(row, layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [(v - mean) / deviation * w + b for v, w, b in affine]


def mlp(layers, row):
    return linear(layers[2], [gelu(v) for v in linear(layers[0], row)])


def test_merging_is_a_softmax_over_the_patches():
    module = randomised(TokenSlimming(6, 3).double())
    for image in rand(2, 5, 6):
        rows = image.tolist()
        scores = [
            linear(module.fc2, [gelu(v) for v in linear(module.fc1, norm(module.norm, row))])
            for row in rows
        ]
        out = module(image[None])[0]
        for i in range(3):
            exp = [math.exp(module.scale.item() * s[i]) for s in scores]
            for c in range(6):
                expected = sum(e * r[c] for e, r in zip(exp, rows, strict=True)) / sum(exp)
                assert out[i, c].item() == pytest.approx(expected, rel=1e-9)


def test_merging_keeps_equal_patches_and_ignores_their_order():
    module = randomised(TokenSlimming(6, 3).double())
    patches, order = rand(2, 5, 6), torch.randperm(5)
    assert torch.allclose(module.weights(patches).sum(-1), torch.ones(2, 3).double())
    assert torch.allclose(module(patches[:, order]), module(patches), atol=1e-12)
    equal = patches[:, :1].expand(-1, 9, -1)
    assert torch.allclose(module(equal), equal[:, :3], atol=1e-12)
    assert torch.autograd.gradcheck(module, (patches.requires_grad_(),))


def test_recovery_is_an_mlp_over_places_and_one_over_channels():
    module = randomised(TokenRecovery(4, 2, 5, ratio=1.5).double())
    patches = rand(1, 2, 4)
    normed = [norm(module.norm1, row) for row in patches[0].tolist()]
    columns = [mlp(module.places, [row[c] for row in normed]) for c in range(4)]
    out = module(patches)[0]
    assert out.shape == (5, 4)
    for n in range(5):
        y = [column[n] for column in columns]
        expected = [
            a + b for a, b in zip(y, mlp(module.channels, norm(module.norm2, y)), strict=True)
        ]
        assert out[n].tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('distilled', [False, True])
@pytest.mark.parametrize('size', [24, 32])
def test_without_merging_it_is_mmpretrains(distilled, size):
    """Also at another size than that of its positions."""
    kind = DistilledVisionTransformer if distilled else VisionTransformer
    plain = randomised(kind(arch=ARCH, img_size=24, patch_size=8)).double()
    plain.eval()
    net = SlimmedViT(ARCH, slim_before=(), img_size=24, patch_size=8, distilled=distilled)
    net = net.double().eval()
    net.take_over(plain.state_dict())
    assert set(net.state_dict()) == set(plain.state_dict())
    images = rand(2, 3, size, size)
    (mine,), (theirs,) = net(images), plain(images)
    if not distilled:
        mine, theirs = (mine,), (theirs,)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_merged_layers_have_fewer_patches_and_cost_less():
    options = dict(arch=ARCH, img_size=32, patch_size=4)
    plain = VisionTransformer(**options)
    plain.eval()
    net = SlimmedViT(slim_before=(1, 3), **options)
    assert net.patches == (64, 32, 32, 16)
    net.take_over(plain.state_dict())
    net.eval()
    assert torch.equal(net.layers[2].attn.qkv.weight, plain.layers[2].attn.qkv.weight)
    seen = {}
    for i, layer in enumerate(net.layers):
        layer.register_forward_hook(lambda m, args, out, i=i: seen.update({i: out.shape[1]}))
    image = torch.rand(1, 3, 32, 32)
    flops = [count_flops(lambda n=n: n(image)) for n in (net, plain)]
    assert seen == {0: 65, 1: 33, 2: 33, 3: 17}
    assert flops[0] < 0.7 * flops[1]
    # As many at every size.
    assert net(torch.rand(1, 3, 40, 40))[0].shape == (1, 16)
    assert seen == {0: 101, 1: 33, 2: 33, 3: 17}


def test_shares_of_each_merging():
    assert SlimmedViT(ARCH, (1, 2), (0.75, 1 / 3), 24, 8).patches == (9, 6, 2, 2)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='deit-huge'), 'deit-tiny'),
        (dict(arch=dict(ARCH, depth=3)), 'arch needs'),
        (dict(arch=ARCH, slim_before=(2, 1)), 'ascending'),
        (dict(arch=ARCH, slim_before=(4,)), '0 ... 3'),
        (dict(arch=ARCH, slim_before=(1, 2), keep=(0.5,)), 'one for each of the 2'),
        (dict(arch=ARCH, slim_before=(1,), keep=1.5), r'\(0, 1\]'),
        (dict(arch=ARCH, slim_before=(1, 2), keep=0.1, img_size=32), 'no patch from layer 1'),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SlimmedViT(**options)
    with pytest.raises(ValueError, match='at least 1'):
        TokenSlimming(4, 0)


def test_it_takes_over_its_own_sizes_only():
    net = SlimmedViT(ARCH, (1,), img_size=24, patch_size=8)
    other = VisionTransformer(arch=dict(ARCH, embed_dims=32), img_size=24, patch_size=8)
    with pytest.raises(ValueError, match='Of another shape.*cls_token'):
        net.take_over(other.state_dict())
    with pytest.raises(ValueError, match='plain ViT'):
        net.take_over(dict(conv1=torch.zeros(1)))
