import pytest
from networks import build, classifier_config, detector_config

from mmdfkd.inheritance import shrink_config


def test_classifier_sizes():
    cfg = classifier_config()
    before = cfg.to_dict()
    model = shrink_config(cfg, width=0.75, depth=0.6)
    assert model.backbone.arch == dict(
        embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48
    )
    assert model.head.in_channels == 24 and model.head.num_classes == 6
    assert model.data_preprocessor == before['data_preprocessor']
    assert cfg.to_dict() == before
    build(cfg, model)


def test_named_archs_are_resolved():
    cfg = classifier_config()
    cfg.model.backbone.arch = 'deit-tiny'
    cfg.model.head.in_channels = 192
    model = shrink_config(cfg, width=0.67, depth=0.5)
    assert model.backbone.arch == dict(
        embed_dims=128, num_layers=6, num_heads=2, feedforward_channels=512
    )
    cfg = detector_config()
    cfg.model.backbone.arch = 'base'
    arch = shrink_config(cfg, width=0.5, depth=0.67).backbone.arch
    assert (arch.embed_dims, arch.num_heads, arch.head_dims) == (384, 6, 64)
    assert arch.global_indices == (2, 4, 7)


def test_detector_sizes():
    cfg = detector_config(bbox_head='Shared4Conv1FCBBoxHead', mask=True)
    model = shrink_config(cfg, width=0.5, depth=0.67, mlp=0.25, neck=0.5, head=0.5)
    assert model.backbone.arch == dict(
        embed_dims=24,
        num_layers=4,
        num_heads=2,
        head_dims=16,
        feedforward_channels=16,
        global_indices=(1, 3),
    )
    assert 'init_cfg' not in model.backbone
    assert (model.neck.in_channels, model.neck.out_channels) == (24, 8)
    assert 'lateral_channels' not in model.neck
    cfg.model.neck.lateral_channels = 48
    assert shrink_config(cfg, neck=0.5).neck.lateral_channels == 24
    assert (model.rpn_head.in_channels, model.rpn_head.feat_channels) == (8, 8)
    roi = model.roi_head
    assert roi.bbox_roi_extractor.out_channels == roi.mask_roi_extractor.out_channels == 8
    assert (roi.bbox_head.in_channels, roi.bbox_head.conv_out_channels) == (8, 8)
    assert roi.bbox_head.fc_out_channels == 16  # 12 rounded to eights
    assert (roi.mask_head.in_channels, roi.mask_head.conv_out_channels) == (8, 8)
    assert roi.bbox_head.num_classes == 4
    assert model.test_cfg == cfg.model.test_cfg
    assert model.rpn_head.anchor_generator == cfg.model.rpn_head.anchor_generator
    student, teacher = build(cfg, model).net, build(cfg).net
    count = [sum(p.numel() for p in n.parameters()) for n in (student, teacher)]
    assert count[0] < 0.4 * count[1]


def test_no_stochastic_depth():
    """Wherever the teacher's config sets it; where it does not, nothing is added."""
    cfg = classifier_config(drop_path_rate=0.3, layer_cfgs=dict(drop_path_rate=0.2, drop_rate=0.1))
    backbone = shrink_config(cfg).backbone
    assert backbone.drop_path_rate == 0 and backbone.layer_cfgs == dict(
        drop_path_rate=0, drop_rate=0.1
    )
    assert cfg.model.backbone.drop_path_rate == 0.3
    cfg = detector_config()
    assert 'drop_path_rate' not in shrink_config(cfg).backbone
    cfg.model.backbone.drop_path_rate = 0.4
    model = shrink_config(cfg)
    assert model.backbone.drop_path_rate == 0
    names = {type(m).__name__ for m in build(cfg, model).net.modules()}
    assert 'DropPath' not in names
    assert 'DropPath' in {type(m).__name__ for m in build(cfg).net.modules()}


def test_full_shares_change_no_size():
    for cfg in (classifier_config(), detector_config()):
        model = shrink_config(cfg, 1, 1)
        for key, value in cfg.model.backbone.arch.items():
            assert (
                tuple(model.backbone.arch[key]) == tuple(value)
                if key == 'global_indices'
                else (model.backbone.arch[key] == value)
            )


@pytest.mark.parametrize('share', [0, -1, 1.2, '0.5', True])
def test_shares_out_of_range(share):
    with pytest.raises(ValueError, match='width=.*above 0'):
        shrink_config(classifier_config(), width=share)


@pytest.mark.parametrize(
    ('cfg', 'shares', 'named'),
    [
        (classifier_config(), dict(head=0.1, neck=0.2, decoder=0.3), 'neck=0.2, head=0.1, deco'),
        (detector_config(), dict(decoder=0.1), 'decoder=0.1 for a FasterRCNN'),
    ],
)
def test_shares_of_what_is_not_there_are_refused(cfg, shares, named):
    with pytest.raises(ValueError, match=f'{named}.*leave it out'):
        shrink_config(cfg, width=0.5, **shares)
    assert shrink_config(cfg, width=0.5, **dict.fromkeys(shares, 1)) is not None


def test_unsupported_teachers_are_named():
    cfg = classifier_config()
    cfg.model.backbone.type = 'ResNet'
    with pytest.raises(ValueError, match='ResNet.*Supported'):
        shrink_config(cfg)
    cfg = detector_config()
    cfg.model.neck.type = 'FPN'
    with pytest.raises(ValueError, match='neck is FPN.*Supported'):
        shrink_config(cfg)
    cfg = detector_config()
    cfg.model.roi_head.bbox_head = [cfg.model.roi_head.bbox_head]
    with pytest.raises(ValueError, match='cascade'):
        shrink_config(cfg)
    cfg = detector_config()
    cfg.model.backbone.arch = 'giant'
    with pytest.raises(ValueError, match='giant'):
        shrink_config(cfg)
