"""Parts of the methods: what each is for, measured on images it has not seen."""

import pytest
import torch
from networks import build, classifier_config, detector_config, smooth_images

from mmdfkd.distillers import DataFreeDistiller
from mmdfkd.inheritance import inherit, recipe_of, shrink_config
from mmdfkd.inheritance.least_squares import Moments, keep_strongest
from mmdfkd.inheritance.streams import NormStatistics, SelectionMap

IMAGES = smooth_images(40, 32)
HELD_OUT = smooth_images(32, 32, seed=9)


def test_defaults_and_exchanged_parts():
    slice_, select = recipe_of(), recipe_of('select')
    assert slice_.options() == dict(
        layers='output', channels='rotation', units='reconstruction', refit='block'
    )
    assert select.options() == dict(
        layers='uniform', channels='uniform', units='uniform', refit='none'
    )
    assert not select.refits and recipe_of('select', refit='layer').refits
    assert recipe_of('slice', layers='uniform').layers == 'uniform'


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        (dict(method='slyce'), 'no method'),
        (dict(refit='blocks'), "refit='blocks' is unknown: choose from none, layer, block"),
        (dict(channels='activation'), "for method='select'"),
    ],
)
def test_unknown_parts_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        recipe_of(**options)
    # A run is refused before it reads its teacher.
    with pytest.raises(ValueError, match=match):
        DataFreeDistiller(
            dict(config='nowhere.py', checkpoint='nowhere.pth'),
            dict(type='mmdfkd.Shrunk'),
            heads=[],
            source={},
            inheritance=options,
        )


@pytest.mark.parametrize(
    'options',
    [
        dict(method='select', channels='activation', units='activation', layers='output'),
        dict(method='select', refit='layer'),
        dict(method='select', refit='block', units='reconstruction'),
        dict(method='slice', refit='layer', units='activation', layers='uniform'),
    ],
)
def test_exact_when_nothing_is_cut(options):
    cfg = classifier_config()
    teacher, student = build(cfg), build(cfg, shrink_config(cfg, 1, 1), seed=7)
    report = inherit(teacher, student, IMAGES, **options)
    ours, theirs = (logits(a) for a in (student, teacher))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert report.options == recipe_of(**options).options()


def logits(adapter):
    with torch.no_grad():
        return adapter.answer(adapter.encode(HELD_OUT), None).logits


def block_error(teacher, student, report):
    """Of the stream behind the blocks, on images held out, a share of its energy."""
    tokens = []
    for adapter in (teacher, student):
        found = []
        hooks = [
            layer.register_forward_hook(lambda _m, _i, out, found=found: found.append(out))
            for layer in adapter.net.backbone.layers
        ]
        with torch.no_grad():
            adapter.encode(HELD_OUT)
        for hook in hooks:
            hook.remove()
        tokens.append(found)
    write = torch.linalg.pinv(report.maps['stream'])
    ends = [layer - 1 for layer in report.layers[1:]] + [len(tokens[0]) - 1]
    errors = []
    for ours, end in zip(tokens[1], ends, strict=True):
        goal = tokens[0][end] @ write.t()
        errors.append(float((ours - goal).square().mean() / goal.var()))
    return errors


@pytest.mark.parametrize('method', ['slice', 'select'])
def test_refits_lower_the_error_of_the_blocks(method):
    cfg = classifier_config()
    teacher = build(cfg)
    errors = {}
    for refit in ('none', 'layer', 'block'):
        student = build(cfg, shrink_config(cfg, 0.75, 0.6), seed=7)
        report = inherit(teacher, student, IMAGES, method, layers='uniform', refit=refit)
        errors[refit] = block_error(teacher, student, report)
    # Each block on the student's own inputs: what went wrong before it is not added to.
    assert errors['block'][-1] < 0.8 * errors['none'][-1]
    assert errors['block'][-1] < 0.9 * errors['layer'][-1]
    assert sum(errors['layer']) < sum(errors['none'])


def test_layers_that_do_nothing_are_dropped_by_select_too():
    cfg = classifier_config()
    teacher = build(cfg)
    for index in (1, 4):
        layer = teacher.net.backbone.layers[index]
        for linear in (layer.attn.proj, layer.ffn.layers[1]):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
    students = [build(cfg, shrink_config(cfg, 1, 0.6), seed=7) for _ in range(2)]
    report = inherit(teacher, students[0], IMAGES, 'select', layers='output')
    assert report.layers == [0, 2, 3]
    torch.testing.assert_close(logits(students[0]), logits(teacher), rtol=0, atol=1e-5)
    assert inherit(teacher, students[1], IMAGES, 'select').layers != [0, 2, 3]


def test_window_blocks_stand_for_window_blocks():
    cfg = detector_config(scale_factors=(1,))
    teacher = build(cfg)
    student = build(cfg, shrink_config(cfg, 0.67, 0.67, neck=0.5, head=0.5), seed=7)
    images = smooth_images(10, 64)
    options = dict(layers='output', channels='activation', units='activation', refit='block')
    report = inherit(teacher, student, images, 'select', **options)
    windows = [[b.window_size for b in a.net.backbone.blocks] for a in (teacher, student)]
    assert [windows[0][layer] for layer in report.layers] == windows[1]
    plain = build(cfg, shrink_config(cfg, 0.67, 0.67, neck=0.5, head=0.5), seed=7)
    before = inherit(teacher, plain, images, 'select').agreement
    assert report.agreement['pyramid_cosine'][0] > before['pyramid_cosine'][0]


def quiet(teacher, channels, heads, units):
    """Let nothing but some channels, heads and units carry the teacher's signal."""
    net = teacher.net.backbone
    with torch.no_grad():
        mask = torch.full((net.embed_dims,), 1e-3, dtype=torch.float64)
        mask[channels] = 1
        net.patch_embed.projection.weight.mul_(mask[:, None, None, None])
        net.patch_embed.projection.bias.mul_(mask)
        for table in (net.cls_token, net.pos_embed):
            table.mul_(mask)
        for layer in net.layers:
            second = layer.ffn.layers[1]
            for linear in (layer.attn.proj, second):
                linear.weight.mul_(mask[:, None])
                linear.bias.mul_(mask)
            width = layer.attn.head_dims
            lane = torch.full((net.embed_dims,), 1e-3, dtype=torch.float64)
            for head in heads:
                lane[head * width : (head + 1) * width] = 1
            layer.attn.proj.weight.mul_(lane)
            kept = torch.full((second.in_features,), 1e-3, dtype=torch.float64)
            kept[units] = 1
            second.weight.mul_(kept)


def test_select_finds_what_is_active():
    cfg = classifier_config()
    teacher = build(cfg)
    torch.manual_seed(4)
    channels = torch.randperm(32)[:16].sort().values
    quiet(teacher, channels, (0, 3), torch.randperm(64)[:32])
    errors = {}
    for channel, unit in (
        ('uniform', 'uniform'),
        ('activation', 'uniform'),
        ('activation', 'activation'),
    ):
        student = build(cfg, shrink_config(cfg, 0.5, 1), seed=7)
        report = inherit(teacher, student, IMAGES, 'select', channels=channel, units=unit)
        errors[channel, unit] = float((logits(student) - logits(teacher)).square().mean())
    assert report.heads == [[0, 3]] * 5
    kept = report.maps['stream'].sum(1).nonzero().flatten()
    assert torch.equal(kept, channels)
    first, second, third = errors.values()
    assert third < 0.5 * second < 0.5 * first


def test_strongest_groups_and_their_mean():
    torch.manual_seed(0)
    x = torch.randn(500, 6).double() * torch.tensor([1, 1, 3, 3, 0.1, 0.1]).double()
    # A large mean is no activity: it goes to the bias.
    x[:, :2] = x[:, :2] * 1e-3 + 50
    moments = Moments(6)
    moments.add(x)
    weight = torch.randn(4, 6).double()
    groups, read, offset = keep_strongest(moments, weight, 2, group=2)
    assert groups.tolist() == [1, 2]
    ours = x[:, 2:] @ (weight @ read).t() + weight @ offset
    error = (ours - x @ weight.t()).square().mean()
    assert error < 1e-4
    assert not keep_strongest(moments, weight, 3, group=2)[2].any()


def test_importance_is_what_readers_make_of_a_channel():
    torch.manual_seed(0)
    statistics = NormStatistics(4)
    sites = [statistics.site(w) for w in (torch.tensor([[1.0, 0, 0, 2]]), torch.eye(4))]
    x = torch.randn(2000, 4).double()
    for site in sites:
        statistics.add(x, site)
    # Shares of each site: (1, 0, 0, 4) / 5 and a quarter each.
    wanted = torch.tensor([0.45, 0.25, 0.25, 1.05]).double()
    torch.testing.assert_close(statistics.importance(), wanted, atol=0.05, rtol=0)
    index = torch.tensor([0, 1])
    y = x * torch.tensor([3.0, 3, 1, 1]).double()
    statistics = NormStatistics(4)
    statistics.add(y)
    scale = statistics.spread(index)
    ratio = y[:, index].var(1, correction=0) / y.var(1, correction=0)
    torch.testing.assert_close(scale, float(ratio.mean().sqrt()), atol=1e-6, rtol=0)
    one, zero = torch.ones(4), torch.zeros(4)
    _, weight, _ = SelectionMap(index, 4, scale).through_norm(one, zero)
    torch.testing.assert_close(weight, torch.full((2,), scale).double())
