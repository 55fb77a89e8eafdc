import pytest
import torch
from networks import build, detector_config, smooth_images

from mmdfkd.inheritance import inherit, shrink_config
from mmdfkd.inheritance.families import build_heir
from mmdfkd.inheritance.streams import zero_sum_basis

IMAGES = smooth_images(24, 64)


def outputs(adapter, teacher, images=IMAGES[:4]):
    """Pyramid, RPN maps and RoI outputs at the teacher's proposals, flat."""
    with torch.no_grad():
        heir = build_heir(teacher, adapter)
        probe = heir._propose(teacher.encode(images))
        memory = adapter.encode(images)
        answer = adapter.answer(memory, probe)
    maps = [*memory.feats, *answer.dense_logits, *answer.dense_deltas, answer.logits, answer.deltas]
    return [m.flatten() for m in maps]


@pytest.mark.parametrize('method', ['slice', 'select'])
@pytest.mark.parametrize(
    'options', [{}, dict(bbox_head='Shared4Conv1FCBBoxHead', mask=True, num_convs=2)]
)
def test_exact_when_nothing_is_cut(method, options):
    cfg = detector_config(**options)
    teacher = build(cfg)
    student = build(cfg, shrink_config(cfg, 1, 1), seed=7)
    report = inherit(teacher, student, IMAGES, method)
    for ours, theirs in zip(outputs(student, teacher), outputs(teacher, teacher), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert report.agreement['roi_class'] == 1
    assert report.agreement['pyramid_cosine'] == pytest.approx([1.0] * 4)
    if options:
        mask = [a.net.roi_head.mask_head for a in (teacher, student)]
        crop = torch.rand(2, 16, 3, 3).double()
        torch.testing.assert_close(mask[0](crop), mask[1](crop), rtol=0, atol=1e-5)


def test_slice_beats_select():
    cfg = detector_config()
    teacher = build(cfg)
    reports = {}
    for method in ('slice', 'select'):
        model = shrink_config(cfg, 0.75, 0.67, neck=0.5, head=0.5)
        student = build(cfg, model, seed=7)
        reports[method] = report = inherit(teacher, student, IMAGES, method)
        kinds = [teacher.net.backbone.blocks[i].window_size for i in report.layers]
        assert kinds == [b.window_size for b in student.net.backbone.blocks]
        assert report.maps['pyramid'].shape == (16, 8)
        assert 0 < report.pyramid_energy < 1
    ours, theirs = reports['slice'].agreement, reports['select'].agreement
    assert ours['roi_class'] > theirs['roi_class']
    assert ours['foreground_gap'] < theirs['foreground_gap']
    assert all(a > b for a, b in zip(ours['pyramid_cosine'], theirs['pyramid_cosine'], strict=True))


def test_low_rank_stream_is_inherited_exactly():
    # A norm-free pyramid and padded windows included; a maximum would not be exact.
    cfg = detector_config(scale_factors=(1,))
    teacher = build(cfg)
    net = teacher.net.backbone
    torch.manual_seed(3)
    keep = torch.linalg.qr(zero_sum_basis(48) @ torch.randn(47, 23).double()).Q
    keep = keep @ keep.t() + 1 / 48
    with torch.no_grad():
        conv = net.patch_embed.proj
        conv.weight.copy_((keep @ conv.weight.flatten(1)).view_as(conv.weight))
        conv.bias.copy_(keep @ conv.bias)
        net.pos_embed.copy_(net.pos_embed @ keep)
        for block in net.blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight.copy_(keep @ linear.weight)
                linear.bias.copy_(keep @ linear.bias)
    model = shrink_config(cfg, 1, 1)
    model.backbone.arch.embed_dims = model.neck.in_channels = 24
    student = build(cfg, model, seed=7)
    report = inherit(teacher, student, IMAGES)
    assert report.stream_energy == pytest.approx(1)
    for ours, theirs in zip(outputs(student, teacher), outputs(teacher, teacher), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_errors():
    cfg = detector_config()
    teacher = build(cfg)

    def refused(match, **changes):
        model = shrink_config(cfg)
        for path, value in changes.items():
            *parents, last = path.split('__')
            part = model
            for name in parents:
                part = part[name]
            part[last] = value
        with pytest.raises(ValueError, match=match):
            inherit(teacher, build(cfg, model), IMAGES)

    refused('window_size', backbone__window_size=4)
    refused('heads are 8 channels wide', backbone__arch__head_dims=8)
    refused('scale factors', neck__scale_factors=(4, 2, 1), neck__num_outs=4)
    refused('global_indices', backbone__arch__global_indices=(0, 1, 2, 3))
    refused('patches are', backbone__patch_size=16)
