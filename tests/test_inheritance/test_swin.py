import pytest
import torch
from mmengine.config import Config
from networks import MEAN, STD, build, smooth_images

from mmdfkd.adapters import Memory, Observation, Targets
from mmdfkd.heads import ChannelMapHead
from mmdfkd.inheritance import inherit, shrink_config

IMAGES = smooth_images(24, 32)
HELD_OUT = smooth_images(16, 32, seed=9)


def swin_config(**backbone) -> Config:
    """Three stages of 16, 32 and 64 channels on 8 x 8, 4 x 4 and 2 x 2 tokens; heads 8 wide."""
    arch = dict(embed_dims=16, depths=[2, 4, 2], num_heads=[2, 4, 8])
    swin = dict(
        type='SwinTransformer',
        arch=arch,
        img_size=32,
        patch_size=4,
        window_size=2,
        out_indices=(2,),
        drop_path_rate=0.0,
    )
    swin.update(backbone)
    return Config(
        dict(
            default_scope='mmpretrain',
            data_preprocessor=dict(num_classes=6, mean=MEAN, std=STD, to_rgb=True),
            model=dict(
                type='ImageClassifier',
                backbone=swin,
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=6, in_channels=64),
            ),
        )
    )


def logits(adapter, images=HELD_OUT):
    with torch.no_grad():
        return adapter.answer(adapter.encode(images), None).logits


def tables(net, value=None):
    """The tables of relative positions, which random weights leave at zero."""
    for name, parameter in net.named_parameters():
        if 'relative_position_bias_table' in name:
            yield parameter


@pytest.mark.parametrize(
    ('backbone', 'options'),
    [
        ({}, dict(method='select')),
        (dict(use_abs_pos_embed=True), dict(method='select', refit='block', units='activation')),
        # Windows that the maps are padded for.
        (dict(window_size=3, pad_small_map=True), dict(method='slice')),
        (dict(patch_cfg=dict(norm_cfg=None)), dict(method='select', channels='activation')),
    ],
)
def test_exact_when_nothing_is_cut(backbone, options):
    cfg = swin_config(**backbone)
    teacher, student = build(cfg), build(cfg, shrink_config(cfg, 1, 1), seed=7)
    assert all(table.abs().max() > 0.01 for table in tables(teacher.net))
    assert (logits(teacher) - logits(student)).abs().max() > 0.1
    report = inherit(teacher, student, IMAGES, **options)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=1e-5)
    assert report.parameters == 1 and report.layers == list(range(8))
    assert report.agreement['top1'] == 1


def test_shrunk_sizes():
    cfg = swin_config()
    model = shrink_config(cfg, width=0.5, depth=0.5)
    assert model.backbone.arch == dict(embed_dims=8, depths=[2, 2, 2], num_heads=[1, 2, 4])
    assert model.head.in_channels == 32
    student = build(cfg, model)
    stage = student.net.backbone.stages[2]
    assert stage.blocks[0].ffn.layers[0][0].weight.shape == (128, 32)
    cfg.model.backbone.arch = 'tiny'
    model = shrink_config(cfg, width=0.67, depth=0.67, mlp=0.5)
    assert model.backbone.arch == dict(embed_dims=64, depths=[2, 2, 4, 2], num_heads=[2, 4, 8, 16])
    assert int(64 * model.backbone.stage_cfgs.block_cfgs.ffn_ratio) == 192
    assert 'stage_cfgs' not in shrink_config(cfg, 1, 1).backbone


def quiet(net, channels):
    """Let only some channels of each stage carry the signal."""
    masks = []
    for stage, kept in zip(net.stages, channels, strict=True):
        mask = torch.full((stage.embed_dims,), 1e-4, dtype=torch.float64)
        mask[kept] = 1
        masks.append(mask)
        for block in stage.blocks:
            for linear in (block.attn.w_msa.proj, block.ffn.layers[1]):
                linear.weight.mul_(mask[:, None])
                linear.bias.mul_(mask)
    norm = net.patch_embed.norm
    norm.weight.mul_(masks[0])
    norm.bias.mul_(masks[0])
    # Its own deviation is over all channels: let these have none either.
    net.patch_embed.projection.weight.mul_(masks[0][:, None, None, None])
    net.patch_embed.projection.bias.mul_(masks[0])
    for stage, mask in zip(net.stages[:-1], masks[1:], strict=True):
        stage.downsample.reduction.weight.mul_(mask[:, None])


def test_channels_are_one_choice_across_stages_and_merging():
    cfg = swin_config()
    teacher = build(cfg)
    torch.manual_seed(2)
    channels = [torch.randperm(n)[: n // 2].sort().values for n in (16, 32, 64)]
    with torch.no_grad():
        quiet(teacher.net.backbone, channels)
    model = shrink_config(cfg, width=0.5, depth=1, mlp=1)
    # All heads and units stay, so the channels are all that is cut.
    model.backbone.arch.num_heads = [1, 2, 4]
    errors = {}
    for how in ('uniform', 'activation'):
        student = build(cfg, model, seed=7)
        report = inherit(teacher, student, IMAGES, 'select', channels=how, units='reconstruction')
        errors[how] = float((logits(student) - logits(teacher)).square().mean())
    assert torch.equal(report.maps['stream'].sum(1).nonzero().flatten(), channels[2])
    weight = student.net.backbone.stages[0].downsample.reduction.weight
    old = teacher.net.backbone.stages[0].downsample.reduction.weight
    columns = (channels[0][:, None] * 4 + torch.arange(4)).flatten()
    torch.testing.assert_close(weight, old[channels[1]][:, columns])
    assert errors['activation'] < 0.7 * errors['uniform']


def test_every_stage_has_its_map_for_heads():
    """By hand: mean squares between the student's tokens and the teacher's kept channels."""
    cfg = swin_config()
    teacher = build(cfg)
    student = build(cfg, shrink_config(cfg, width=0.5, depth=1), seed=7)
    report = inherit(teacher, student, IMAGES, 'select')
    assert set(report.maps) == {'stream', 'stage0', 'stage1', 'stage2'}
    assert torch.equal(report.maps['stage2'], report.maps['stream'])
    for index, widths in enumerate(((8, 16), (16, 32), (32, 64))):
        tap = f'backbone.stages.{index}.blocks.1'
        with torch.no_grad():
            own, other = (a.encode(HELD_OUT, [tap]).taps[tap] for a in (student, teacher))
        head = ChannelMapHead(f'stage{index}', taps_student=[tap], prefix_tokens=0)
        head.build_aligners(*({'neck': [1], tap: width} for width in widths))
        head.start_from(report)
        views = [Observation(Memory((), (32, 32), {tap: x})) for x in (own, other)]
        (found,) = head(*views, Targets(), HELD_OUT).values()
        kept = report.maps[f'stage{index}'].sum(1).nonzero().flatten()
        assert len(kept) == widths[0]
        wanted = other[..., kept].double()
        expected = (own - wanted).square().mean() / wanted.square().mean()
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    absent = ChannelMapHead('stage3', taps_student=[tap], prefix_tokens=0)
    absent.build_aligners(*({'neck': [1], tap: width} for width in widths))
    with pytest.raises(ValueError, match=r"no map of the 'stage3', only of \['stage0', 'stage1'"):
        absent.start_from(report)


def test_heads_take_their_tables_along():
    cfg = swin_config()
    teacher = build(cfg)
    student = build(cfg, shrink_config(cfg, width=0.5, depth=0.5), seed=7)
    report = inherit(teacher, student, IMAGES, 'select', units='activation', layers='output')
    kinds = [i % 2 for i in (0, 1, 0, 1, 2, 3, 0, 1)]
    assert [kinds[layer] % 2 for layer in report.layers] == [0, 1] * 3
    blocks = [[b for s in a.net.backbone.stages for b in s.blocks] for a in (teacher, student)]
    for layer, heads, own in zip(report.layers, report.heads, blocks[1], strict=True):
        table = blocks[0][layer].attn.w_msa.relative_position_bias_table
        assert torch.equal(own.attn.w_msa.relative_position_bias_table, table[:, heads])


def test_refits_and_slice_at_full_width():
    cfg = swin_config()
    teacher = build(cfg)
    errors = {}
    for name, shares, options in (
        ('select', (0.5, 0.5), dict(method='select')),
        ('refitted', (0.5, 0.5), dict(method='select', refit='block')),
        ('select, full width', (1, 0.5, 0.5), dict(method='select')),
        ('slice', (1, 0.5, 0.5), dict(method='slice')),
    ):
        student = build(cfg, shrink_config(cfg, *shares), seed=7)
        inherit(teacher, student, IMAGES, **options)
        errors[name] = float((logits(student) - logits(teacher)).square().mean())
    assert errors['refitted'] < 0.7 * errors['select']
    assert errors['slice'] < 0.7 * errors['select, full width']


def test_errors():
    cfg = swin_config()
    teacher = build(cfg)

    def refused(match, method='select', shares=(0.5, 1), **changes):
        model = shrink_config(cfg, *shares)
        model.backbone.update(changes)
        with pytest.raises(ValueError, match=match):
            inherit(teacher, build(cfg, model), IMAGES, method)

    refused("behind its patch embedding.*take method='select'", method='slice')
    refused('window_size of the student is 4', window_size=4)
    refused('patches are', patch_size=8, window_size=2)
    refused('use_abs_pos_embed', use_abs_pos_embed=True)
    heads = dict(embed_dims=8, depths=[2, 4, 2], num_heads=[2, 4, 8])
    refused('heads of the student are 4 channels wide', arch=heads)
    other = swin_config()
    other.model.neck = None
    with pytest.raises(ValueError, match='neck None'):
        shrink_config(other)
    with pytest.raises(ValueError, match='patch_size=2 for a SwinTransformer'):
        shrink_config(cfg, patch_size=2)
