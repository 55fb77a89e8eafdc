"""Which checkpoints ViTDet and its detector load, and what they say about those they do not."""

import mmdfkd  # noqa: F401  isort: skip (mends torchvision before mmpretrain imports it)
import pytest
import torch
from mmdet.registry import MODELS as DETECTORS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmpretrain.models import VisionTransformer

from mmdfkd.models import ViTDet
from mmdfkd.models.backbones.vit_keys import to_vitdet_keys

WIDTH, DEPTH = 12, 3
ARCH = {
    'embed_dims': WIDTH,
    'num_layers': DEPTH,
    'num_heads': 2,
    'feedforward_channels': 24,
    'global_indices': (2,),
}


def build(**options):
    torch.manual_seed(0)
    return ViTDet(ARCH, **{'img_size': 1024, 'pretrain_img_size': 224, **options})


def timm_weights(**extra):
    """A plain ViT in timm's names, 197 positions; values are random and all different."""
    weights = {
        'cls_token': torch.randn(1, 1, WIDTH),
        'pos_embed': torch.randn(1, 197, WIDTH),
        'patch_embed.proj.weight': torch.randn(WIDTH, 3, 16, 16),
        'patch_embed.proj.bias': torch.randn(WIDTH),
        'norm.weight': torch.randn(WIDTH),
        'norm.bias': torch.randn(WIDTH),
    }
    for i in range(DEPTH):
        for name, shape in (
            ('norm1', (WIDTH,)),
            ('norm2', (WIDTH,)),
            ('attn.qkv', (3 * WIDTH, WIDTH)),
            ('attn.proj', (WIDTH, WIDTH)),
            ('mlp.fc1', (24, WIDTH)),
            ('mlp.fc2', (WIDTH, 24)),
        ):
            weights[f'blocks.{i}.{name}.weight'] = torch.randn(shape)
            weights[f'blocks.{i}.{name}.bias'] = torch.randn(shape[0])
    weights.update(extra)
    return weights


def save(path, weights, key='model'):
    torch.save({key: weights}, path)
    return {'type': 'Pretrained', 'checkpoint': str(path)}


@pytest.fixture
def said(monkeypatch):
    """What the logger was told."""
    lines = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'info', lambda message, *_: lines.append(str(message)))
    return lines


# --- published detectors
# ------------------------------------------------------------------------------------


def published_keys(depth):
    """Key names of mmdet's published ViTDet Mask R-CNN (its ``projects/ViTDet``)."""

    def both(name):
        return {f'{name}.weight', f'{name}.bias'}

    keys = {'backbone.pos_embed'} | both('backbone.patch_embed.proj')
    for i in range(depth):
        block = f'backbone.blocks.{i}'
        keys |= {f'{block}.attn.rel_pos_h', f'{block}.attn.rel_pos_w'}
        for name in ('norm1', 'norm2', 'attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'):
            keys |= both(f'{block}.{name}')
    for name in ('fpn1.0', 'fpn1.1', 'fpn1.3', 'fpn2.0'):
        keys |= both(f'neck.{name}')
    convs = [f'neck.{kind}_convs.{i}' for kind in ('lateral', 'fpn') for i in range(4)]
    convs += [f'roi_head.bbox_head.shared_convs.{i}' for i in range(4)]
    convs += [f'roi_head.mask_head.convs.{i}' for i in range(4)]
    for conv in convs:
        keys |= {f'{conv}.conv.weight'} | both(f'{conv}.norm_layer')
    for name in ('rpn_conv.0.conv', 'rpn_conv.1.conv', 'rpn_cls', 'rpn_reg'):
        keys |= both(f'rpn_head.{name}')
    for name in ('shared_fcs.0', 'fc_cls', 'fc_reg'):
        keys |= both(f'roi_head.bbox_head.{name}')
    for name in ('upsample', 'conv_logits'):
        keys |= both(f'roi_head.mask_head.{name}')
    return keys


@pytest.fixture(scope='module')
def detector():
    """A whole ViTDet Mask R-CNN at reduced width."""
    register_all_modules(init_default_scope=False)
    norm = {'type': 'mmdfkd.LayerNorm2d'}
    roi_layer = {'type': 'RoIAlign', 'output_size': 7, 'sampling_ratio': 0}
    extractor = {
        'type': 'SingleRoIExtractor',
        'roi_layer': roi_layer,
        'out_channels': 16,
        'featmap_strides': [4, 8, 16, 32],
    }
    config = {
        'type': 'MaskRCNN',
        'backbone': {'type': 'mmdfkd.ViTDet', 'arch': ARCH},
        'neck': {'type': 'mmdfkd.SimpleFPN', 'in_channels': WIDTH, 'out_channels': 16},
        'rpn_head': {
            'type': 'RPNHead',
            'in_channels': 16,
            'feat_channels': 16,
            'num_convs': 2,
            'anchor_generator': {
                'type': 'AnchorGenerator',
                'scales': [8],
                'ratios': [0.5, 1.0, 2.0],
                'strides': [4, 8, 16, 32, 64],
            },
            'bbox_coder': {'type': 'DeltaXYWHBBoxCoder'},
            'loss_cls': {'type': 'CrossEntropyLoss', 'use_sigmoid': True},
            'loss_bbox': {'type': 'L1Loss'},
        },
        'roi_head': {
            'type': 'StandardRoIHead',
            'bbox_roi_extractor': extractor,
            'bbox_head': {
                'type': 'Shared4Conv1FCBBoxHead',
                'in_channels': 16,
                'conv_out_channels': 16,
                'fc_out_channels': 16,
                'num_classes': 80,
                'norm_cfg': norm,
                'bbox_coder': {'type': 'DeltaXYWHBBoxCoder'},
            },
            'mask_roi_extractor': extractor,
            'mask_head': {
                'type': 'FCNMaskHead',
                'num_convs': 4,
                'in_channels': 16,
                'conv_out_channels': 16,
                'num_classes': 80,
                'norm_cfg': norm,
            },
        },
        'train_cfg': None,
        'test_cfg': {'rpn': {}, 'rcnn': {}},
    }
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DETECTORS.build(ConfigDict(config))


def test_a_detector_has_the_published_key_names(detector):
    own = {k for k in detector.state_dict() if not k.startswith('data_preprocessor')}
    assert own == published_keys(DEPTH)


def test_a_published_detector_loads_strictly(detector):
    own = detector.state_dict()
    published = {k: torch.randn_like(own[k]) for k in published_keys(DEPTH)}
    detector.load_state_dict(published, strict=True)
    loaded = detector.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in published.items())
    missing, unexpected = detector.load_state_dict(
        {k.replace('norm_layer', 'ln'): v for k, v in published.items()}, strict=False
    )
    assert len(missing) == len(unexpected) == 32  # what another name would have lost in silence


# --- plain ViTs: timm, MAE, DeiT
# ----------------------------------------------------------------------------


def test_mae_weights_into_a_1024_px_model(tmp_path, said):
    """The 3-D table of 197 positions stays as it is; relative positions start at zero."""
    weights = timm_weights(
        mask_token=torch.randn(1, 1, 8),
        decoder_pos_embed=torch.randn(1, 197, 8),
        **{'decoder_blocks.0.norm1.weight': torch.randn(8), 'head.weight': torch.randn(5, WIDTH)},
    )
    model = build(init_cfg=save(tmp_path / 'mae.pth', weights))
    model.init_weights()
    own = model.state_dict()
    dropped = {k for k in weights if k not in own}
    assert dropped == {
        'cls_token',
        'norm.weight',
        'norm.bias',
        'mask_token',
        'decoder_pos_embed',
        'decoder_blocks.0.norm1.weight',
        'head.weight',
    }
    for key, value in own.items():
        assert torch.equal(value, weights[key] if key in weights else torch.zeros_like(value)), key
    report = next(line for line in said if 'not used' in line)
    assert all(key in report for key in dropped)
    assert 'blocks.2.attn.rel_pos_w' in report
    assert model(torch.randn(1, 3, 64, 96))[0].shape == (1, WIDTH, 4, 6)


@pytest.mark.parametrize('prefixes', [1, 2])
def test_a_table_with_class_token_into_a_model_without(tmp_path, prefixes):
    """197 positions, or the 198 of a distilled DeiT, into 196: patches keep their places."""
    weights = timm_weights(pos_embed=torch.randn(1, 196 + prefixes, WIDTH))
    model = build(
        pretrain_use_cls_token=False, init_cfg=save(tmp_path / 'deit.pth', weights, 'state_dict')
    )
    model.init_weights()
    assert torch.equal(model.pos_embed, weights['pos_embed'][:, prefixes:])
    again = build(pretrain_use_cls_token=False, use_rel_pos=False)
    again.load_state_dict(weights, strict=True)
    assert torch.equal(again.pos_embed, model.pos_embed)


def test_a_detectors_backbone_is_found_by_its_prefix(tmp_path):
    own = {f'backbone.{k}': torch.randn_like(v) for k, v in build().state_dict().items()}
    init_cfg = save(tmp_path / 'detector.pth', {**own, 'neck.weight': torch.zeros(1)})
    for options in ({}, {'prefix': 'backbone.'}):
        model = build(init_cfg={**init_cfg, **options})
        model.init_weights()
        found = model.state_dict()
        assert all(torch.equal(found[k[9:]], v) for k, v in own.items())


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (lambda w: w.pop('blocks.1.mlp.fc2.bias'), r"Missing: \['blocks.1.mlp.fc2.bias'\]"),
        (
            lambda w: w.update({'blocks.0.attn.gamma': torch.zeros(1)}),
            r"Unexpected: \['blocks.0.attn.gamma'\]",
        ),
        (
            lambda w: w.update(pos_embed=torch.zeros(1, 577, WIDTH)),
            r'pos_embed \(1, 577, 12\) instead of \(1, 197, 12\).*pretrain_img_size',
        ),
        (
            lambda w: w.update({'blocks.0.mlp.fc1.weight': torch.zeros(48, WIDTH)}),
            r'blocks.0.mlp.fc1.weight \(48, 12\) instead of \(24, 12\)',
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, change, named):
    weights = timm_weights()
    change(weights)
    model = build(init_cfg=save(tmp_path / 'other.pth', weights))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=named):
        model.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_direct_loading_says_what_it_leaves_out(said):
    model = build(use_rel_pos=False)
    model.load_state_dict(timm_weights(), strict=True)
    assert any('cls_token' in line and 'norm.weight' in line for line in said)
    said.clear()
    model.load_state_dict(model.state_dict(), strict=True)
    assert not said


# --- mmpretrain
# ---------------------------------------------------------------------------------------------


def mmpretrain_vit(**options):
    torch.manual_seed(1)
    arch = {k: v for k, v in ARCH.items() if k != 'global_indices'}
    vit = VisionTransformer(arch, img_size=64, patch_size=16, **options)
    for p in vit.parameters():
        p.data.normal_(std=0.3)
    vit.eval()  # returns nothing
    return vit


def test_a_plain_mmpretrain_vit_gives_the_same_features(tmp_path):
    """Global attention, no relative positions: the two networks are one."""
    vit = mmpretrain_vit(out_type='featmap', with_cls_token=False, final_norm=False)
    model = build(
        img_size=64,
        pretrain_img_size=64,
        window_size=0,
        use_rel_pos=False,
        pretrain_use_cls_token=False,
        init_cfg=save(tmp_path / 'vit.pth', vit.state_dict(), 'state_dict'),
    )
    model.init_weights()
    for size in ((64, 64), (96, 48)):
        image = torch.randn(2, 3, *size)
        assert torch.allclose(model(image)[0], vit(image)[0], atol=1e-5)


def test_an_mmpretrain_classifier_is_translated_key_by_key(tmp_path, said):
    vit = mmpretrain_vit()
    weights = vit.state_dict()
    classifier = {f'backbone.{k}': v for k, v in weights.items()}
    classifier['head.layers.head.weight'] = torch.zeros(5, WIDTH)
    model = build(pretrain_img_size=64, init_cfg=save(tmp_path / 'c.pth', classifier, 'state_dict'))
    model.init_weights()
    own = model.state_dict()
    assert torch.equal(own['pos_embed'], weights['pos_embed'])
    assert torch.equal(own['patch_embed.proj.weight'], weights['patch_embed.projection.weight'])
    for i in range(DEPTH):
        theirs, ours = f'layers.{i}', f'blocks.{i}'
        for kind in ('weight', 'bias'):
            for a, b in (
                ('ln1', 'norm1'),
                ('ln2', 'norm2'),
                ('attn.qkv', 'attn.qkv'),
                ('attn.proj', 'attn.proj'),
                ('ffn.layers.0.0', 'mlp.fc1'),
                ('ffn.layers.1', 'mlp.fc2'),
            ):
                assert torch.equal(own[f'{ours}.{b}.{kind}'], weights[f'{theirs}.{a}.{kind}'])
    report = next(line for line in said if 'not used' in line)
    assert all(key in report for key in ('cls_token', 'ln1.weight', 'ln1.bias'))


def test_translation_leaves_its_input_alone():
    weights = timm_weights()
    names = set(weights)
    converted, dropped = to_vitdet_keys(weights, 196)
    assert set(weights) == names
    assert weights['pos_embed'].shape == (1, 197, WIDTH)
    assert converted['pos_embed'].shape == (1, 196, WIDTH)
    assert set(converted) | set(dropped) == names
