"""ViTDet against the published architecture, written here a second time, and its options."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmdfkd.models import ViTDet
from mmdfkd.models.backbones.vitdet import ARCHS

ARCH = {
    'embed_dims': 8,
    'num_layers': 3,
    'num_heads': 2,
    'feedforward_channels': 20,
    'global_indices': (1,),
}
OPTIONS = {'img_size': 64, 'patch_size': 8, 'window_size': 3, 'pretrain_img_size': 32}


def build(seed=0, **options):
    """A small float64 ViTDet in which every parameter matters."""
    torch.manual_seed(seed)
    model = ViTDet(**{'arch': ARCH, **OPTIONS, **options}).double()
    for p in model.parameters():
        p.data.normal_(std=0.4)
    return model.eval()


# --- the reference: numbers and loops, no code of the package
# ---------------------------------------------


def linear(x, weights, name):
    return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']


def layer_norm(x, weights, name):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6) ** 0.5 * weights[f'{name}.weight'] + weights[
        f'{name}.bias'
    ]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def resampler(size, length, kernel, reach):
    """Matrix ``[size, length]`` of a resampling with half-pixel centres and clamped borders."""
    matrix = torch.zeros(size, length, dtype=torch.float64)
    for i in range(size):
        centre = (i + 0.5) * length / size - 0.5
        if reach == 1:
            centre = max(centre, 0.0)  # the linear filter clamps the coordinate itself
        for j in range(math.floor(centre) - reach + 1, math.floor(centre) + reach + 1):
            matrix[i, min(max(j, 0), length - 1)] += kernel(abs(centre - j))
    return matrix


def cubic(d, a=-0.75):
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def hat(d):
    return max(1 - d, 0.0)


def attention(x, weights, name, heads):
    """Over one window or map ``[H, W, C]``, query by query."""
    h, w, c = x.shape
    dim = weights[f'{name}.qkv.weight'].shape[0] // 3 // heads
    qkv = linear(x.reshape(h * w, c), weights, f'{name}.qkv').reshape(h * w, 3, heads, dim)
    tables = []
    for axis, size in (('h', h), ('w', w)):
        table = weights.get(f'{name}.rel_pos_{axis}')
        if table is not None and len(table) != 2 * size - 1:
            table = resampler(2 * size - 1, len(table), hat, 1) @ table
        tables.append(table)
    out = torch.zeros(h * w, heads, dim, dtype=torch.float64)
    for head in range(heads):
        q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
        for i in range(h * w):
            logits = k @ q[i] / math.sqrt(dim)
            if tables[0] is not None:
                for j in range(h * w):
                    logits[j] += q[i] @ tables[0][i // w - j // w + h - 1]
                    logits[j] += q[i] @ tables[1][i % w - j % w + w - 1]
            p = (logits - logits.max()).exp()
            out[i, head] = (p / p.sum()) @ v
    return linear(out.reshape(h * w, heads * dim), weights, f'{name}.proj').reshape(h, w, c)


def reference(model, image, patch=8, window=3, grid=4, cls_token=True, global_blocks=(1,), heads=2):
    """Last map ``[C, H, W]`` of one image whose sides are multiples of the patch."""
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    h, w = image.shape[1] // patch, image.shape[2] // patch
    x = image.reshape(3, h, patch, w, patch).permute(1, 3, 0, 2, 4).reshape(h, w, -1)
    x = x @ weights['patch_embed.proj.weight'].flatten(1).T + weights['patch_embed.proj.bias']
    table = weights['pos_embed'][0, int(cls_token) :].reshape(grid, grid, -1)
    if (h, w) != (grid, grid):
        rows, columns = resampler(h, grid, cubic, 2), resampler(w, grid, cubic, 2)
        table = torch.einsum('ij,jkc,lk->ilc', rows, table, columns)
    x = x + table
    block = 0
    while f'blocks.{block}.norm1.weight' in weights:
        name = f'blocks.{block}'
        y = layer_norm(x, weights, f'{name}.norm1')
        if block in global_blocks:
            y = attention(y, weights, f'{name}.attn', heads)
        else:
            rows, columns = math.ceil(h / window), math.ceil(w / window)
            padded = torch.zeros(rows * window, columns * window, x.shape[-1], dtype=torch.float64)
            padded[:h, :w] = y
            for r in range(rows):
                for c in range(columns):
                    part = slice(r * window, (r + 1) * window), slice(c * window, (c + 1) * window)
                    padded[part] = attention(padded[part], weights, f'{name}.attn', heads)
            y = padded[:h, :w]
        x = x + y
        y = linear(layer_norm(x, weights, f'{name}.norm2'), weights, f'{name}.mlp.fc1')
        x = x + linear(gelu(y), weights, f'{name}.mlp.fc2')
        block += 1
    return x.permute(2, 0, 1)


@pytest.mark.parametrize(
    ('size', 'options', 'settings'),
    [
        # 4 x 4 tokens in windows of 3: padded; rel. positions of the global block from 15 to 7.
        ((32, 32), {}, {}),
        # 5 x 7 tokens: absolute positions resized too, each axis by its own factor.
        ((40, 56), {}, {}),
        # 8 x 8 tokens as stored: no relative position is interpolated; windows fit.
        ((64, 64), {'window_size': 4}, {'window': 4}),
        ((40, 24), {'use_rel_pos': False}, {}),
        ((24, 40), {'window_size': 0}, {'global_blocks': (0, 1, 2)}),
        ((48, 32), {'pretrain_use_cls_token': False}, {'cls_token': False}),
        # Heads wider than the stream's share, as a sliced student has them.
        ((32, 40), {'arch': {**ARCH, 'head_dims': 6}}, {}),
    ],
)
def test_equals_the_published_architecture(size, options, settings):
    model = build(**options)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    (out,) = model(images)
    assert out.shape == (2, 8, size[0] // 8, size[1] // 8)
    for image, found in zip(images, out, strict=True):
        expected = reference(model, image, **settings)
        assert torch.allclose(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('size', [(33, 47), (30, 64), (8, 8), (9, 8)])
def test_any_input_size(size):
    """An image that is no multiple of the patch is one padded with zeros, right and bottom."""
    model = build()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    (out,) = model(image)
    assert out.shape[-2:] == (math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    padded = F.pad(image, (0, -size[1] % 8, 0, -size[0] % 8))
    assert torch.equal(out, model(padded)[0])


def test_an_image_below_one_patch_is_an_error():
    with pytest.raises(ValueError, match=r'smaller than one 8 px patch'):
        build()(torch.zeros(1, 3, 7, 64, dtype=torch.float64))


# --- options
# ------------------------------------------------------------------------------------------------


def test_out_indices():
    indices = [0, -1]
    model = build(out_indices=indices)
    assert indices == [0, -1]
    assert model.out_indices == (0, 2)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    outs = model(image)
    assert len(outs) == 2
    assert torch.equal(outs[1], build()(image)[0])
    assert torch.equal(outs[0], build(out_indices=(-3,))(image)[0])
    assert not torch.equal(outs[0], outs[1])
    with pytest.raises(ValueError, match='3 blocks'):
        build(out_indices=(3,))


def test_drop_path_is_on_both_branches():
    model = build(drop_path_rate=1 - 1e-12).train()
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.5, 1])
    x = torch.randn(4, 3, 3, 8, dtype=torch.float64)
    assert torch.equal(model.blocks[2](x), x)  # nothing is left but the identity
    assert not torch.allclose(model.eval().blocks[2](x), x)


def test_drop_path_keeps_each_branch_on_its_own():
    """At rate 0.5 a sample keeps none, one or both of the branches, scaled by 2."""
    block = build(drop_path_rate=0.5).blocks[2].train()
    x = torch.randn(1, 3, 3, 8, dtype=torch.float64)
    attended = block.attn(block.norm1(x))
    torch.manual_seed(0)
    out = block(x.expand(64, -1, -1, -1))
    seen = set()
    for after_attention in (0, 2):
        y = x + after_attention * attended
        for after_mlp in (0, 2):
            z = y + after_mlp * block.mlp(block.norm2(y))
            hits = (out - z).abs().amax((1, 2, 3)) < 1e-9
            seen.update({(after_attention, after_mlp, int(i)) for i in hits.nonzero()})
    assert {i for _, _, i in seen} == set(range(64))
    assert {(a, m) for a, m, _ in seen} == {(0, 0), (0, 2), (2, 0), (2, 2)}


def test_checkpointing_gives_the_same_gradients():
    image = torch.randn(3, 3, 40, 56, dtype=torch.float64)
    grads = []
    for with_cp in (False, True):
        model = build(with_cp=with_cp, drop_path_rate=0.5).train()
        torch.manual_seed(7)  # the recomputation has to draw the same paths
        model(image)[0].square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_checkpointing_recomputes():
    model = build(with_cp=True)
    calls = []
    model.blocks[0].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(1, 3, 32, 32, dtype=torch.float64))[0].sum().backward()
    assert len(calls) == 2


def test_frozen_stages():
    model = build(frozen_stages=2, drop_path_rate=0.5).train()
    trained = {name.split('.')[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {'2'}
    assert [block.training for block in model.blocks] == [False, False, True]
    model(torch.randn(1, 3, 32, 32, dtype=torch.float64))[0].sum().backward()
    assert model.pos_embed.grad is None
    assert model.blocks[2].mlp.fc1.weight.grad is not None
    embeddings_only = build(frozen_stages=0)
    frozen = {n for n, p in embeddings_only.named_parameters() if not p.requires_grad}
    assert frozen == {'pos_embed', 'patch_embed.proj.weight', 'patch_embed.proj.bias'}
    assert all(p.requires_grad for p in build().parameters())


def test_gradients_reach_the_pixels_and_every_parameter():
    model = build()
    image = torch.randn(1, 3, 40, 40, dtype=torch.float64, requires_grad=True)
    model(image)[0].square().sum().backward()
    assert image.grad.abs().amin() > 0
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


@pytest.mark.parametrize(
    ('arch', 'width', 'heads', 'depth', 'globals_'),
    [
        ('tiny', 192, 3, 12, (2, 5, 8, 11)),
        ('small', 384, 6, 12, (2, 5, 8, 11)),
        ('base', 768, 12, 12, (2, 5, 8, 11)),
        ('large', 1024, 16, 24, (5, 11, 17, 23)),
    ],
)
def test_published_sizes(arch, width, heads, depth, globals_):
    """The number of parameters, counted from the published sizes."""
    assert arch in ARCHS
    with torch.device('meta'):
        model = ViTDet(arch)
    embeddings = 3 * 16 * 16 * width + width + 197 * width
    block = 4 * width + 4 * (width**2 + width) + 8 * width**2 + 5 * width
    head = width // heads
    relative = sum(2 * (127 if i in globals_ else 27) * head for i in range(depth))
    expected = embeddings + depth * block + relative
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model.global_indices == globals_
    assert all(b.attn.head_dims == 64 for b in model.blocks)


def test_unknown_arch_is_an_error():
    with pytest.raises(ValueError, match=r"'huge'.*base.*large.*small.*tiny"):
        ViTDet('huge')


def test_start_from_scratch():
    torch.manual_seed(0)
    model = ViTDet(ARCH, **OPTIONS)
    model.init_weights()
    assert 0.01 < model.pos_embed.std() < 0.03
    assert 0.01 < model.blocks[0].mlp.fc1.weight.std() < 0.03
    assert not model.blocks[0].attn.qkv.bias.any()
    assert not model.blocks[0].attn.rel_pos_h.any()
    assert torch.equal(model.blocks[0].norm1.weight, torch.ones(8))


def test_bfloat16_autocast():
    model = build().float()
    with torch.autocast('cpu', torch.bfloat16):
        (out,) = model(torch.randn(1, 3, 40, 56))
    out.float().sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
