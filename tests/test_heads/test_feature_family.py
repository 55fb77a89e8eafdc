"""Heads of the feature and the attention family on observations of known content."""

import pytest
import torch
from torch import nn

from mmdfkd.adapters import Memory, Observation, Targets
from mmdfkd.heads import DistillHead, FeatureHead
from mmdfkd.heads.attention import AttentionHead
from mmdfkd.heads.channel_map import ChannelMapHead
from mmdfkd.heads.cross_architecture import CrossArchitectureHead, GroupwiseLinear
from mmdfkd.heads.cwd import ChannelWiseHead
from mmdfkd.heads.generation import GenerationHead, Generator
from mmdfkd.heads.probe import ProbeHead
from mmdfkd.heads.simreg import SimRegHead
from mmdfkd.heads.target_aware import TargetAwareHead
from mmdfkd.inheritance import InheritanceReport
from mmdfkd.losses import (
    attention_consistency,
    attention_probe,
    channel_map_mimic,
    head_attention,
    simreg,
    vitkd_mimic,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def observe(feature=None, size=(32, 32), **taps):
    feats = feature if isinstance(feature, tuple) else (feature,)
    return Observation(Memory(feats, size, taps))


def built(head: DistillHead, student: Observation, teacher: Observation) -> DistillHead:
    """Widths as the student reads them: tokens and maps of blocks have their channels last."""

    def widths(memory):
        found = {name: value.shape[-1] for name, value in memory.taps.items()}
        neck = [f.shape[1 if f.dim() != 3 else 2] for f in memory.feats if f is not None]
        return {'neck': neck, **found}

    head.build_aligners(widths(student.memory), widths(teacher.memory))
    return head


def run(head, student, teacher):
    return head(student, teacher, Targets(), torch.zeros(2, 3, 32, 32))


def softmax_rows(qkv, heads, prefix):
    """Attention among tokens ``[B, h, L, L]``, written out."""
    batch, length, width = qkv.shape
    q, k, _ = qkv.view(batch, length, 3, heads, width // 3 // heads).unbind(2)
    logits = torch.einsum('bihd,bjhd->bhij', q, k) / q.shape[-1] ** 0.5
    return logits.exp() / logits.exp().sum(-1, keepdim=True)


# --- the base -------------------------------------------------------------------------------------


def test_levels_of_a_pyramid():
    s = tuple(torch.randn(2, 3, n, n) for n in (8, 4, 2))
    t = tuple(torch.randn(2, 3, n, n) for n in (8, 4, 2))
    head = built(FeatureHead(levels=(0, 2)), observe(s), observe(t))
    loss = run(head, observe(s), observe(t))['loss_feature']
    first, last = ((s[i] - t[i]).square().sum() / t[i].square().sum() for i in (0, 2))
    assert torch.isclose(loss, (first + last) / 2)
    with pytest.raises(ValueError, match='level 3 of the student, which has 3'):
        built(FeatureHead(levels=(3,)), observe(s), observe(t))
    with pytest.raises(ValueError, match='taps or levels'):
        FeatureHead(taps_student=['a'], levels=(0,))


# --- attention ------------------------------------------------------------------------------------


def test_probe_head_averages_over_blocks_of_unlike_widths():
    s = {'a': torch.randn(2, 17, 6, requires_grad=True), 'b': torch.randn(2, 17, 6)}
    t = {'a': torch.randn(2, 18, 8), 'b': torch.randn(2, 18, 8)}
    head = ProbeHead(taps_student=['a', 'b'], prefix_tokens=(1, 2))
    student, teacher = observe(**s), observe(**t)
    built(head, student, teacher)
    assert not list(head.parameters())
    expected = sum(attention_probe(s[k], t[k], (1, 2)) for k in s) / 2
    loss = run(head, student, teacher)['loss_probe']
    assert torch.isclose(loss, expected)
    loss.backward()
    assert s['a'].grad.any()


def test_probe_head_on_maps_and_another_grid():
    t = torch.randn(2, 4, 4, 8)  # a block of ViTDet
    fine = t.repeat_interleave(2, 1).repeat_interleave(2, 2)
    options = {'taps_student': ['a'], 'prefix_tokens': 0, 'channels_last': True}
    head = built(ProbeHead(**options), observe(a=fine), observe(a=t))
    assert run(head, observe(a=fine), observe(a=t))['loss_probe'] < 1e-10
    with pytest.raises(ValueError, match='out_type'):
        vectors = observe(torch.randn(2, 4))
        run(built(ProbeHead(), vectors, vectors), vectors, vectors)


@pytest.mark.parametrize(
    ('mode', 'heads'), [('mse', (2, 4)), ('kl', (2, 4)), ('head_ssim', (2, 2))]
)
@pytest.mark.parametrize('rows', ['class', 'mean', 'all'])
def test_attention_head_recomputes_the_rows_from_qkv(mode, heads, rows):
    s, t = torch.randn(2, 17, 3 * 8, requires_grad=True), torch.randn(2, 18, 3 * 16)
    head = AttentionHead(
        mode=mode, rows=rows, num_heads=heads, taps_student=['qkv'], prefix_tokens=(1, 2)
    )
    student, teacher = observe(qkv=s), observe(qkv=t)
    loss = run(built(head, student, teacher), student, teacher)['loss_attention']

    def wanted(qkv, n, prefix):
        if rows == 'mean':  # the mean query's row: put it in front
            width = qkv.shape[-1] // 3
            mean = qkv[:, prefix:].mean(1, keepdim=True)
            whole = torch.cat([mean[..., :width], qkv[:, :1, width:]], -1)
            logits_of = torch.cat([whole, qkv], 1)
            batch, length, _ = logits_of.shape
            q, k, _ = logits_of.view(batch, length, 3, n, width // n).unbind(2)
            logits = torch.einsum('bhd,bjhd->bhj', q[:, 0], k[:, 1:]) / q.shape[-1] ** 0.5
            found = logits.softmax(-1)[:, :, None]
        else:
            found = softmax_rows(qkv, n, prefix)
            found = found[:, :, :1] if rows == 'class' else found[:, :, prefix:]
        found = found[..., prefix:]
        return found / found.sum(-1, keepdim=True)

    own, other = wanted(s, heads[0], 1), wanted(t, heads[1], 2)
    if mode == 'head_ssim':
        expected = head_attention(own, other)
    else:
        expected = attention_consistency(own, other, 0, mode)
    assert torch.isclose(loss, expected, rtol=1e-4)
    loss.backward()
    width = s.shape[-1] // 3
    assert s.grad[..., : 2 * width].any()
    assert not s.grad[..., 2 * width :].any()  # values play no part


def test_attention_head_on_another_grid():
    """The same queries and keys on a grid twice as fine: a quarter of the attention each."""
    qkv = torch.randn(2, 1, 3 * 8).expand(2, 17, -1)  # uniform attention
    fine = torch.randn(2, 1, 3 * 8).expand(2, 65, -1)
    options = {'taps_student': ['qkv'], 'num_heads': (2, 2)}
    student, teacher = observe(qkv=fine), observe(qkv=qkv)
    head = built(AttentionHead(**options), student, teacher)
    assert run(head, student, teacher)['loss_attention'] < 1e-10
    with pytest.raises(ValueError, match='equal grids'):
        run(built(AttentionHead(rows='all', **options), student, teacher), student, teacher)


def test_attention_head_asks_the_networks_for_their_heads():
    class Attention(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.num_heads = heads
            self.qkv = nn.Linear(8, 24)

    net = nn.ModuleDict({'attn': Attention(2)})
    head = AttentionHead(taps_student=['attn.qkv'])
    head.bind(net, nn.ModuleDict({'attn': Attention(4)}))
    assert head.num_heads == [(2,), (4,)]
    with pytest.raises(ValueError, match=r"'attn' of the student.*\['attn.qkv'\]"):
        AttentionHead(taps_student=['attn']).bind(net, net)
    with pytest.raises(ValueError, match='not in this network at all'):
        AttentionHead(taps_student=['0']).bind(nn.Sequential(nn.Conv2d(1, 1, 1)), net)


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize('normalize', [True, False])
def test_patches_alone_are_vitkds_mimicry(normalize):
    s, t = torch.randn(2, 17, 6), torch.randn(2, 17, 8)
    student, teacher = observe(a=s), observe(a=t)
    settings = dict(taps_student=['a'], with_prefix=False, normalize=normalize)
    head = built(FeatureHead(**settings), student, teacher)
    loss = run(head, student, teacher)['loss_feature']
    error = (head.aligners[0](s[:, 1:]) - t[:, 1:]).square().sum() / (2 * 16 * 8)
    energy = t[:, 1:].square().sum() / (2 * 16 * 8) if normalize else 1
    assert torch.isclose(loss, error / energy, rtol=1e-5)
    assert torch.isclose(loss, vitkd_mimic(head.aligners[0](s[:, 1:]), t[:, 1:], normalize))


def test_generation_of_hidden_patches_is_vitkd():
    s, t = torch.randn(2, 17, 6, requires_grad=True), torch.randn(2, 17, 8)
    student, teacher = observe(a=s), observe(a=t)
    head = built(GenerationHead(taps_student=['a'], align='always'), student, teacher)
    assert head.generators[0].mask_token is not None
    torch.manual_seed(1)
    loss = run(head, student, teacher)['loss_generation']
    torch.manual_seed(1)
    order = torch.rand(2, 16).argsort(1).argsort(1)
    hidden = order >= 8
    patches = head.aligners[0](s[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    mask = hidden.view(2, 1, 4, 4).float()
    seen = patches * (1 - mask) + head.generators[0].mask_token * mask
    made = head.generators[0].layers(seen).flatten(2).transpose(1, 2)
    wanted = t[:, 1:]
    expected = (made - wanted)[hidden].square().sum() / wanted[hidden].square().sum()
    assert torch.isclose(loss, expected, rtol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in head.parameters())
    assert not s.grad[:, 1:][hidden].any()  # what is hidden is not seen
    assert s.grad[:, 1:][~hidden].any()


def test_generator_sees_nothing_where_hidden():
    generator = Generator(3, mask_token=True)
    hidden = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    first, second = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    assert torch.equal(generator(first, hidden), generator(second, hidden))


@pytest.mark.parametrize('orientation', ['paper', 'release'])
def test_target_aware_head(orientation):
    s, t = torch.randn(2, 65, 6, requires_grad=True), torch.randn(2, 17, 8)
    student, teacher = observe(a=s), observe(a=t)
    head = built(TargetAwareHead(orientation, taps_student=['a']), student, teacher)
    loss = run(head, student, teacher)['loss_target_aware']
    maps = s[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    if orientation == 'release':
        maps = nn.functional.interpolate(maps, (4, 4), mode='bilinear')
    q, v = (m(maps).flatten(2).transpose(1, 2) for m in (head.queries[0], head.values[0]))
    wanted = t[:, 1:]
    ask, key = (wanted, q) if orientation == 'paper' else (q, wanted)
    logits = torch.einsum('bid,bjd->bij', ask, key) / 8**0.5
    out = torch.einsum('bij,bjd->bid', logits.softmax(-1), v)
    expected = (out - wanted).square().sum() / wanted.square().sum()
    assert torch.isclose(loss, expected, rtol=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in head.parameters())
    assert s.grad[:, 1:].any()


@pytest.mark.parametrize('prefix', [0, 1])
def test_simreg_head_regresses_the_pooled_feature(prefix):
    s, t = torch.randn(2, prefix + 16, 6, requires_grad=True), torch.randn(2, 17, 8)
    student, teacher = observe(a=s), observe(a=t)
    head = SimRegHead(taps_student=['a'], prefix_tokens=(prefix, 1))
    built(head, student, teacher)
    assert sum(isinstance(m, nn.Linear) for m in head.modules()) == 4
    pooled = s[:, 0] if prefix else s.mean(1)
    loss = run(head, student, teacher)['loss_simreg']
    assert torch.isclose(loss, simreg(head.projectors[0](pooled), t[:, 0]))


def report(read):
    return InheritanceReport(
        method='slice',
        layers=[0],
        heads=[[0]],
        stream_energy=1.0,
        parameters=1.0,
        seconds=0.0,
        images=1,
        maps={'stream': read},
    )


def test_channel_map_head_compares_in_the_students_channels():
    read = torch.linalg.qr(torch.randn(8, 6, dtype=torch.float64)).Q
    t = torch.randn(2, 18, 8)
    s = torch.randn(2, 17, 6)
    student, teacher = observe(a=s), observe(a=t)
    head = ChannelMapHead(taps_student=['a'], prefix_tokens=(1, 2))
    built(head, student, teacher)
    with pytest.raises(ValueError, match='FeatureHead'):
        head.fit_aligners(student, teacher)
    head.start_from(report(read))
    head.fit_aligners(student, teacher)
    both = torch.cat([t[:, :1], t[:, 2:]], 1)  # the distillation token has no counterpart
    expected = channel_map_mimic(s, both, read.t())
    assert torch.isclose(run(head, student, teacher)['loss_channel_map'], expected, rtol=1e-5)
    exact = observe(a=(both.double() @ read).float())
    assert run(head, exact, teacher)['loss_channel_map'] < 1e-10
    again = built(ChannelMapHead(taps_student=['a'], prefix_tokens=(1, 2)), student, teacher)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.to_student, head.to_student)


def test_channel_map_head_errors():
    student, teacher = observe(a=torch.randn(2, 17, 6)), observe(a=torch.randn(2, 17, 8))
    head = built(ChannelMapHead(taps_student=['a']), student, teacher)
    with pytest.raises(ValueError, match=r'\(6, 9\)'):
        head.start_from(report(torch.randn(9, 6)))
    pyramid = built(ChannelMapHead('pyramid', taps_student=['a']), student, teacher)
    with pytest.raises(ValueError, match="only of \\['stream'\\]"):
        pyramid.start_from(report(torch.randn(8, 6)))
    with pytest.raises(ValueError, match='not wider'):
        built(ChannelMapHead(taps_student=['a']), teacher, student)


def test_groupwise_linear_has_a_layer_for_each_neighbourhood():
    layer = GroupwiseLinear(3, 5)
    maps = torch.randn(2, 3, 14, 14)
    out = layer(maps).view(2, 14, 14, 5)
    assert len(layer.weight) == 16
    for y, x in ((0, 0), (3, 4), (13, 7), (12, 13)):
        group = (y // 4) * 4 + x // 4
        expected = maps[:, :, y, x] @ layer.weight[group] + layer.bias[group]
        assert torch.allclose(out[:, y, x], expected, atol=1e-5)
    assert layer(torch.randn(1, 3, 2, 3)).shape == (1, 6, 5)


def test_cross_architecture_head():
    s = torch.randn(2, 6, 7, 7, requires_grad=True)
    t, qkv = torch.randn(2, 17, 8), torch.randn(2, 17, 24)
    student, teacher = observe(m=s), observe(b=t, **{'b.attn.qkv': qkv})
    head = CrossArchitectureHead('m', 'b', num_heads=2, adversary_weight=0.1)
    head.build_aligners({'neck': [6], 'm': 6}, {'neck': [8], 'b': 8, 'b.attn.qkv': 24})
    losses = run(head, student, teacher)
    assert set(losses) == {
        'loss_cross_attention',
        'loss_cross_feature',
        'loss_cross_adversary',
    }
    sum(losses.values()).backward()
    assert s.grad.any()
    assert all(p.grad is not None for p in head.parameters())


def test_the_adversary_descends_and_the_student_ascends():
    s = torch.randn(2, 6, 4, 4, requires_grad=True)
    student = observe(m=s)
    teacher = observe(b=torch.randn(2, 17, 8), **{'b.attn.qkv': torch.randn(2, 17, 24)})
    head = CrossArchitectureHead('m', 'b', num_heads=2, adversary_weight=1.0)
    head.build_aligners({'neck': [6], 'm': 6}, {'neck': [8], 'b': 8, 'b.attn.qkv': 24})

    def judged():
        return run(head, student, teacher)['loss_cross_adversary']

    loss = judged()
    loss.backward()
    with torch.no_grad():
        s += 0.1 * -s.grad  # a descent step on what the student is told
        assert judged() > loss
        s -= 0.1 * -s.grad
        for p in head.discriminator.parameters():
            p -= 0.01 * p.grad
        assert judged() < loss


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: ProbeHead(norm_axis='batch'), 'norm_axis'),
        (lambda: AttentionHead(mode='l1', taps_student=['a']), 'mode'),
        (lambda: AttentionHead(rows='some', taps_student=['a']), 'rows'),
        (lambda: AttentionHead(), 'qkv'),
        (lambda: AttentionHead(taps_student=['a'], prefix_tokens=(0, 1)), "'mean'"),
        (lambda: GenerationHead('some'), 'target'),
        (lambda: GenerationHead(ratio=1.0), 'ratio'),
        (lambda: TargetAwareHead('ours'), 'orientation'),
        (lambda: ChannelWiseHead(temperature=0), 'positive'),
        (lambda: SimRegHead(layers=0), 'linear layer'),
        (lambda: ChannelMapHead('tokens'), 'space'),
        (lambda: ChannelMapHead('stage'), "such as 'stage0'"),
        (lambda: CrossArchitectureHead('a', 'b', replaced=2), 'replaced'),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
