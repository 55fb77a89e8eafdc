"""Weight multiplexing, against loops written from its equations in float64."""

import mmdfkd  # noqa: F401  isort: skip (mends torchvision before mmpretrain imports it)
import pytest
import torch
import toy

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.inheritance import inherit
from mmdfkd.models import MiniViT

DIMS, HEADS, HIDDEN, DEPTH = 8, 2, 12, 3
ARCH = dict(embed_dims=DIMS, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=HIDDEN)


def mini(seed=0, **options):
    """Random everywhere, transformations included."""
    net = MiniViT(ARCH, img_size=24, patch_size=8, **options).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.5)
    return net


def by_hand(net, image, share, eps=1e-6):
    """One image ``[3, 24, 24]``, token by token; 3 x 3 patches of 8 px."""
    w = net.state_dict()

    def norm(x, name):
        centred = x - x.mean()
        return (
            centred / (centred.square().mean() + eps).sqrt() * w[f'{name}.weight']
            + w[f'{name}.bias']
        )

    def linear(x, name):
        return w[f'{name}.weight'] @ x + w[f'{name}.bias']

    tokens = [w['cls_token'][0, 0]]
    for i in range(3):
        for j in range(3):
            patch = image[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            kernel = w['patch_embed.projection.weight']
            tokens.append((kernel * patch).sum((1, 2, 3)) + w['patch_embed.projection.bias'])
    tokens = [t + w['pos_embed'][0, n] for n, t in enumerate(tokens)]
    d, count = DIMS // HEADS, len(tokens)
    for layer in range(DEPTH):
        own, shared = f'layers.{layer}', f'shared.{layer // share}'
        qkv = [linear(norm(t, f'{own}.ln1'), f'{shared}.qkv') for t in tokens]
        q, k, v = ([x[a * DIMS : (a + 1) * DIMS].reshape(HEADS, d) for x in qkv] for a in range(3))
        before, after = w[f'{own}.mix_logits'], w[f'{own}.mix_attention']
        out = torch.zeros(count, HEADS, d, dtype=image.dtype)
        for i in range(count):
            logits = torch.stack([(q[i] * k[j]).sum(-1) / d**0.5 for j in range(count)], -1)
            attention = (before @ logits).softmax(-1)
            attention = after @ attention
            for head in range(HEADS):
                for j in range(count):
                    out[i, head] += attention[head, j] * v[j][head]
        tokens = [
            t + linear(o.flatten(), f'{shared}.proj') for t, o in zip(tokens, out, strict=True)
        ]
        normed = [norm(t, f'{own}.ln2') for t in tokens]
        seen = [normed[0]]
        for i in range(3):
            for j in range(3):
                total = torch.zeros_like(normed[0])
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        if 0 <= i + di < 3 and 0 <= j + dj < 3:
                            kernel = w[f'{own}.conv.weight'][:, 0, di + 1, dj + 1]
                            total += kernel * normed[1 + 3 * (i + di) + j + dj]
                seen.append(total)
        hidden = [linear(y, f'{shared}.fc1') for y in seen]
        hidden = [h * (1 + torch.erf(h / 2**0.5)) / 2 for h in hidden]
        tokens = [t + linear(h, f'{shared}.fc2') for t, h in zip(tokens, hidden, strict=True)]
    return norm(tokens[0], 'ln1')


def test_the_forward_is_that_of_the_equations():
    net = mini(share=2)
    assert len(net.shared) == 2
    image = torch.randn(3, 24, 24, dtype=torch.float64, generator=torch.manual_seed(1))
    with torch.no_grad():
        expected = by_hand(net, image, 2)
        torch.testing.assert_close(net(image[None])[-1][0], expected, rtol=0, atol=1e-11)
    assert expected.std() > 0.1
    with torch.no_grad():
        net.layers[2].mix_logits.add_(0.1)
        assert not torch.allclose(net(image[None])[-1][0], expected, atol=1e-3)


def vit(**options):
    """A classifier of mmpretrain, or with ``mini`` one of ours, of the same sizes."""
    model = toy.classifier_model()
    backbone = dict(type='VisionTransformer', arch=ARCH, img_size=24, patch_size=8)
    model['backbone'] = {**backbone, **options}
    model['head']['in_channels'] = DIMS
    return model


OURS = dict(type='mmdfkd.MiniViT')


@pytest.mark.parametrize('out_type', ['cls_token', 'raw', 'featmap', 'avg_featmap'])
def test_sharing_nothing_is_the_plain_vit(out_type):
    teacher = toy.build(vit(out_type=out_type), scope='mmpretrain').backbone.double()
    net = mini(share=1, out_type=out_type)
    net.multiplex(teacher.state_dict())
    for size in (24, 40):
        images = torch.randn(2, 3, size, size, dtype=torch.float64)
        with torch.no_grad():
            # mmpretrain resizes positions in single precision.
            atol = 1e-11 if size == 24 else 1e-6
            torch.testing.assert_close(net(images)[-1], teacher(images)[-1], rtol=0, atol=atol)


def test_what_a_shared_block_starts_from():
    teacher = toy.build(vit(), scope='mmpretrain').backbone.double().state_dict()
    first, last = teacher['layers.0.attn.qkv.weight'], teacher['layers.1.attn.qkv.weight']
    for start, expected in (('first', first), ('last', last), ('mean', (first + last) / 2)):
        net = mini(share=2, share_from=start)
        net.multiplex(teacher)
        assert torch.equal(net.shared[0].qkv.weight, expected)
        assert torch.equal(net.shared[1].fc2.weight, teacher['layers.2.ffn.layers.1.weight'])
        # Norms are each layer's own.
        assert torch.equal(net.layers[1].ln1.weight, teacher['layers.1.ln1.weight'])
    with pytest.raises(ValueError, match='Of another shape: .*fc1.weight'):
        wide = vit(arch=dict(ARCH, feedforward_channels=16))
        mini().multiplex(toy.build(wide, scope='mmpretrain').backbone.state_dict())


def test_a_student_inherits_and_is_an_ordinary_classifier():
    whole = [toy.whole(vit(**o), 'mmpretrain') for o in ({}, dict(OURS, share=1), OURS)]
    nets = [toy.build(w['model'], seed=i, scope='mmpretrain') for i, w in enumerate(whole)]
    adapters = [
        build_adapter(n, Normalizer.from_config(w)) for n, w in zip(nets, whole, strict=True)
    ]
    images = toy.images(16, size=24)
    report = inherit(adapters[0], adapters[1], images)
    assert report.method == 'multiplex' and report.agreement['kl'] < 1e-6
    report = inherit(adapters[0], adapters[2], images)
    assert 0.5 < report.parameters < 0.95 and report.agreement['kl'] > 0
    assert 'multiplex' in str(report)
    # What is exported loads into what the toolbox builds of the config.
    plain = toy.plain(whole[2]['model'], 'mmpretrain')
    plain.load_state_dict(nets[2].state_dict())
    plain.eval()
    inputs = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        ours, theirs = (net.head(net.extract_feat(inputs)) for net in (nets[2], plain))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "no arch 'huge'"),
        (dict(arch=dict(embed_dims=8)), 'arch needs'),
        (dict(out_type='map'), "not 'map'"),
        (dict(share=0), 'share must be at least 1'),
        (dict(kernel_size=2), 'kernel_size odd'),
        (dict(share_from='all'), "not 'all'"),
        (dict(out_indices=(3,)), 'of 3 layers'),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        MiniViT(**{'arch': ARCH, **options})
