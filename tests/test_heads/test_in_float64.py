"""Heads with layers of their own, as they compose their losses, against equations in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
import toy

from mmdfkd.adapters import Memory, Observation, Response, Targets
from mmdfkd.heads import (
    ChannelWiseHead,
    CoAdviseHead,
    CrossArchitectureHead,
    EarlyFeatureHead,
    GenerationHead,
    PyramidHead,
    RecalibrationHead,
)

IMAGES = torch.zeros(2, 3, 32, 32)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def observe(**taps):
    return Observation(Memory((None,), (32, 32), taps))


def in_double(head):
    """Weights that all matter."""
    for parameter in head.double().parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return head


def share(error, target, normalize):
    error = (error**2).sum() / error.numel()
    return error / ((target**2).sum() / target.numel()) if normalize else error


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def layer_norm(x, norm):
    """Over the last dimension."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def linear(x, layer):
    return torch.einsum('...i,oi->...o', x, layer.weight) + layer.bias


def convolve(maps, weight, bias=None):
    """3 x 3 with zeros around, as a sum over the nine offsets; weights ``[out, in, 3, 3]``."""
    h, w = maps.shape[-2:]
    wide = F.pad(maps, (1, 1, 1, 1))
    out = sum(
        torch.einsum('bihw,oi->bohw', wide[..., y : y + h, x : x + w], weight[..., y, x])
        for y in range(3)
        for x in range(3)
    )
    return out if bias is None else out + bias[:, None, None]


def resized(maps, size):
    return F.interpolate(maps, size=size, mode='bilinear', align_corners=False)


def pyramid(*levels):
    return Observation(Memory(levels, (32, 32)))


@pytest.mark.parametrize('settings', [{}, dict(ratio=0.3, normalize=False)])
def test_mgd(settings):
    """Aligned, resized, places hidden by chance, two convolutions; every place counts."""
    own, other = rand(2, 6, 4, 4).requires_grad_(), rand(2, 8, 8, 8)
    head = GenerationHead('all', levels=(0,), **settings)
    head.build_aligners({'neck': [6]}, {'neck': [8]})
    (aligner,), (generator,) = in_double(head).aligners, head.generators
    assert generator.mask_token is None
    torch.manual_seed(1)
    found = head(pyramid(own), pyramid(other), Targets(), IMAGES)['loss_generation']
    torch.manual_seed(1)
    seen = (torch.rand(2, 64) >= settings.get('ratio', 0.65)).view(2, 1, 8, 8)
    x = torch.einsum('bihw,oi->bohw', own, aligner.weight[..., 0, 0])
    x = resized(x + aligner.bias[:, None, None], (8, 8)) * seen
    first, _, second = generator.layers
    x = convolve(x, first.weight, first.bias).clamp_min(0)
    expected = share(
        convolve(x, second.weight, second.bias) - other, other, settings.get('normalize', True)
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    assert own.grad.any() and all(p.grad.any() for p in head.parameters())


@pytest.mark.parametrize('settings', [{}, dict(temperature=4.0, standardize=True)])
def test_channel_wise(settings):
    """``(T^2 / (N C)) sum_nc KL`` of softmaxes over the places, of the aligned and resized map."""
    own, other = rand(2, 6, 4, 4).requires_grad_(), 3 * rand(2, 8, 8, 8) + 1
    head = ChannelWiseHead(levels=(0,), **settings)
    head.build_aligners({'neck': [6]}, {'neck': [8]})
    (aligner,) = in_double(head).aligners
    found = head(pyramid(own), pyramid(other), Targets(), IMAGES)['loss_cwd']
    x = torch.einsum('bihw,oi->bohw', own, aligner.weight[..., 0, 0])
    maps = [resized(x + aligner.bias[:, None, None], (8, 8)), other]
    temperature = settings.get('temperature', 1.0)
    if settings:
        for i, each in enumerate(maps):
            centred = each - each.mean((0, 2, 3), keepdim=True)
            variance = (centred**2).mean((0, 2, 3), keepdim=True)
            maps[i] = centred / (variance + 1e-3 * variance.mean() + 1e-6).sqrt()
    p, q = ((m.flatten(2) / temperature).exp() for m in maps)
    p, q = (m / m.sum(-1, keepdim=True) for m in (p, q))
    expected = temperature**2 * (q * (q / p).log()).sum() / 16
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    assert own.grad.any()


def test_pkd_of_a_pyramid():
    """Half the squared distance of aligned, resized and standardised maps; the mean of levels."""
    # Channels of very unequal spread, one of them constant.
    scale = torch.tensor([1.0, 30.0, 0.1, 0.0, 5.0, 1.0, 1.0, 1.0]).double().view(8, 1, 1)
    own = [rand(2, 6, 4, 4).requires_grad_(), rand(2, 6, 3, 3).requires_grad_()]
    other = [scale * rand(2, 8, 8, 8) + 3, scale * rand(2, 8, 3, 3) - 1]
    head = PyramidHead(mode='pkd')
    head.build_aligners({'neck': [6, 6]}, {'neck': [8, 8]})
    in_double(head)
    found = head(pyramid(*own), pyramid(*other), Targets(), IMAGES)['loss_pyramid']
    expected = 0.0
    for aligner, x, goal in zip(head.aligners, own, other, strict=True):
        x = torch.einsum('bihw,oi->bohw', x, aligner.weight[..., 0, 0])
        pair = [resized(x + aligner.bias[:, None, None], goal.shape[-2:]), goal]
        for i, maps in enumerate(pair):
            rows = [maps[:, c].flatten() for c in range(8)]
            means = [row.sum() / len(row) for row in rows]
            spread = [((row - m) ** 2).sum() / len(row) for row, m in zip(rows, means, strict=True)]
            least = 1e-3 * sum(spread) / 8 + 1e-6
            pair[i] = torch.stack(
                [
                    (row - m) / (v + least).sqrt()
                    for row, m, v in zip(rows, means, spread, strict=True)
                ]
            )
        gap = pair[0] - pair[1]
        expected = expected + (gap**2).sum() / gap.numel() / 2 / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    assert all(x.grad.any() for x in own) and all(p.grad.any() for p in head.aligners.parameters())


@pytest.mark.parametrize('normalize', [True, False])
def test_both_terms_of_the_cross_architecture_head(normalize, monkeypatch):
    """A map of 7 x 7 and a ViT's 4 x 4 patches behind a class token, two attention heads."""
    maps, tokens, qkv = rand(2, 6, 7, 7).requires_grad_(), rand(2, 17, 8), rand(2, 17, 24)
    head = CrossArchitectureHead('m', 'b', num_heads=2, groups=2, normalize=normalize)
    head.build_aligners({'neck': [6], 'm': 6}, {'neck': [8], 'b': 8, 'b.attn.qkv': 24})
    in_double(head)
    student, teacher = observe(m=maps), observe(b=tokens, **{'b.attn.qkv': qkv})
    chances = [torch.rand(2, 2, 16, 4, dtype=torch.float64) for _ in range(3)]
    drawn = iter(chances)
    monkeypatch.setattr(torch, 'rand_like', lambda _: next(drawn))
    found = head(student, teacher, Targets(), IMAGES)
    own = resized(maps, (4, 4))

    # A linear layer for each quarter of the map.
    other = tokens[:, 1:]
    projected = torch.stack(
        [
            own[:, :, y, x] @ head.linear.weight[2 * (y // 2) + x // 2]
            + head.linear.bias[2 * (y // 2) + x // 2]
            for y in range(4)
            for x in range(4)
        ],
        1,
    )
    expected = share(projected - other, other, normalize)
    assert found['loss_cross_feature'].item() == pytest.approx(expected.item(), rel=1e-6)

    # Queries, keys and values of each head, half of the student's entries replaced.
    def parts(x):
        """``[B, N, 3 * heads * d]``: which matrix, then which head, then its channels."""
        return [
            torch.stack([x[..., 8 * k + 4 * h : 8 * k + 4 * h + 4] for h in range(2)], 1)
            for k in range(3)
        ]

    joint = convolve(own, head.attention.weight, head.attention.bias)
    mine, theirs = parts(joint.flatten(2).transpose(1, 2)), parts(qkv[:, 1:])
    mixed = [
        torch.where(chance < 0.5, b, a) for a, b, chance in zip(mine, theirs, chances, strict=True)
    ]

    def attend(q, k, v):
        logits = torch.einsum('bhid,bhjd->bhij', q, k) / math.sqrt(4)
        return torch.einsum('bhij,bhjd->bhid', logits.softmax(-1), v)

    def relate(v):
        return torch.einsum('bhid,bhjd->bhij', v, v) / math.sqrt(4)

    wanted = attend(*theirs), relate(theirs[2])
    expected = share(attend(*mixed) - wanted[0], wanted[0], normalize)
    expected = expected + share(relate(mine[2]) - wanted[1], wanted[1], normalize)
    assert found['loss_cross_attention'].item() == pytest.approx(expected.item(), rel=1e-6)
    sum(found.values()).backward()
    assert maps.grad.any() and all(p.grad.any() for p in head.parameters())


@pytest.mark.parametrize('normalize', [True, False])
def test_early_features(normalize):
    """Depth-wise convolution, BatchNorm of the batch, GELU, channels; then the map's grid."""
    own = {'a': rand(2, 17, 6), 'b': rand(2, 17, 6)}
    other = {'c': rand(2, 5, 8, 8), 'd': rand(2, 7, 2, 2)}
    head = EarlyFeatureHead(
        normalize,
        taps_student=['a', 'b'],
        taps_teacher=['c', 'd'],
        prefix_tokens=(1, 0),
        channels_last=False,
    )
    head.build_aligners({'neck': [1], 'a': 6, 'b': 6}, {'neck': [1], 'c': 5, 'd': 7})
    in_double(head)
    found = head(observe(**own), observe(**other), Targets(), IMAGES)['loss_early_feature']
    expected = 0.0
    for aligner, tokens, goal in zip(head.aligners, own.values(), other.values(), strict=True):
        depthwise, norm, _, channels = aligner
        maps = tokens[:, 1:].transpose(1, 2).reshape(2, 6, 4, 4)
        x = torch.cat(
            [convolve(maps[:, c : c + 1], depthwise.weight[c : c + 1]) for c in range(6)], 1
        )
        x = layer_of_the_batch(x, norm)
        x = torch.einsum('bihw,oi->bohw', gelu(x), channels.weight[..., 0, 0])
        x = resized(x + channels.bias[:, None, None], goal.shape[-2:])
        expected = expected + share(x - goal, goal, normalize) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def layer_of_the_batch(x, norm):
    """BatchNorm in training: each channel over images and places."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
    return (x - mean) / (variance + norm.eps).sqrt() * weight + bias


@pytest.mark.parametrize('normalize', [True, False])
def test_recalibration(normalize):
    """Three layers of 16 patches, of which the last two have 8 of them left."""
    model = toy.classifier_model(dims=6, layers=3)
    model['backbone'] = dict(
        type='mmdfkd.SlimmedViT',
        arch=model['backbone']['arch'],
        slim_before=(1,),
        img_size=32,
        patch_size=8,
    )
    net = toy.build(model, scope='mmpretrain')
    head = RecalibrationHead(normalize=normalize)
    head.bind(net, toy.build(toy.classifier_model(dims=6, layers=3), scope='mmpretrain'))
    taps = head.needs.taps_student
    head.build_aligners(*(dict.fromkeys(taps, 6) for _ in range(2)))
    in_double(head)
    own = {tap: rand(2, 1 + count, 6) for tap, count in zip(taps, (16, 8, 8), strict=True)}
    other = {tap: rand(2, 17, 6) for tap in taps}
    found = head(observe(**own), observe(**other), Targets(), IMAGES)['loss_recalibration']
    expected = 0.0
    for tap, recovery in zip(taps, head.recoveries, strict=True):
        x, goal = own[tap][:, 1:], other[tap][:, 1:]
        if x.shape[1] == 8:
            first, _, second = recovery.places
            y = layer_norm(x, recovery.norm1).transpose(1, 2)
            y = linear(gelu(linear(y, first)), second).transpose(1, 2)
            first, _, second = recovery.channels
            x = y + linear(gelu(linear(layer_norm(y, recovery.norm2), first)), second)
        expected = expected + share(x - goal, goal, normalize) / 3
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize('labels', ['teachers', 'target'])
def test_co_advise(labels):
    """``l_0 CE((z_1 + z_2) / 2, y) + sum_i l_i T_i^2 mean_b KL(p_i || q_i)``."""
    model = toy.classifier_model(dims=6)
    model['backbone']['type'] = 'DistilledVisionTransformer'
    model['head']['type'] = 'DeiTClsHead'
    net = toy.build(model, scope='mmpretrain').double()
    layers = net.head.layers
    for layer in (layers.head, layers.head_dist):
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    weights, temperatures = (0.5, 2.0), (3.0, 1.5)
    head = CoAdviseHead(weights, temperatures, class_weight=0.7, labels=labels)
    head.bind(net, None)
    tokens, answers = (rand(4, 6), rand(4, 6)), (rand(4, 5), rand(4, 5))
    student = Observation(Memory((tokens,), (32, 32)))
    first, second = (
        Observation(Memory((None,), (32, 32)), None, Response(logits=z)) for z in answers
    )
    first.others = (second,)
    aimed = torch.tensor([4, 0, 2, 1])
    found = head(student, first, Targets(labels=aimed), IMAGES)['loss_advise']

    own = [linear(x, y) for x, y in zip(tokens, (layers.head, layers.head_dist), strict=True)]
    mean = (own[0] + own[1]) / 2
    both = sum(z.exp() / z.exp().sum(1, keepdim=True) for z in answers)
    expected = 0.0
    for b in range(4):
        label = aimed[b] if labels == 'target' else both[b].argmax()
        expected -= 0.7 * (mean[b, label] - mean[b].exp().sum().log()) / 4
        for z, answer, weight, t in zip(own, answers, weights, temperatures, strict=True):
            p, q = ((x[b] / t).exp() / (x[b] / t).exp().sum() for x in (answer, z))
            expected += weight * t**2 * (p * (p.log() - q.log())).sum() / 4
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
