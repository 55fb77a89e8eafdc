import json
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from tiny_runs import FEW_IMAGES, NO_VALIDATION, ROOT, TWO_STEPS, random_checkpoint, run_tool

from mmdfkd.distillers import build_network
from mmdfkd.distillers.student_spec import student_config

COCO = ROOT / 'configs' / 'coco'
TEACHER = COCO / 'vitdet_mask-rcnn_vit-b-mae_lsj-100e.py'
SIZES = {'s': (384, 6, 1536), 'ti': (192, 3, 768)}


@pytest.fixture(scope='module')
def teacher():
    return build_network(Config.fromfile(TEACHER))


# What mmdet's published file holds, written down from its projects/ViTDet: a key of every kind and
# its shape.
PUBLISHED = {
    'backbone.pos_embed': (1, 197, 768),
    'backbone.patch_embed.proj.weight': (768, 3, 16, 16),
    'backbone.blocks.0.norm1.weight': (768,),
    'backbone.blocks.0.attn.qkv.weight': (2304, 768),
    'backbone.blocks.0.attn.rel_pos_h': (27, 64),
    'backbone.blocks.2.attn.rel_pos_w': (127, 64),
    'backbone.blocks.11.attn.rel_pos_h': (127, 64),
    'backbone.blocks.11.mlp.fc1.weight': (3072, 768),
    'neck.fpn1.0.weight': (768, 384, 2, 2),
    'neck.fpn1.1.weight': (384,),
    'neck.fpn1.3.weight': (384, 192, 2, 2),
    'neck.fpn2.0.weight': (768, 384, 2, 2),
    'neck.lateral_convs.0.conv.weight': (256, 192, 1, 1),
    'neck.lateral_convs.3.norm_layer.bias': (256,),
    'neck.fpn_convs.3.conv.weight': (256, 256, 3, 3),
    'neck.fpn_convs.0.norm_layer.weight': (256,),
    'rpn_head.rpn_conv.0.conv.weight': (256, 256, 3, 3),
    'rpn_head.rpn_conv.1.conv.bias': (256,),
    'rpn_head.rpn_cls.weight': (3, 256, 1, 1),
    'rpn_head.rpn_reg.weight': (12, 256, 1, 1),
    'roi_head.bbox_head.fc_cls.weight': (81, 1024),
    'roi_head.bbox_head.fc_reg.weight': (320, 1024),
    'roi_head.bbox_head.shared_convs.0.conv.weight': (256, 256, 3, 3),
    'roi_head.bbox_head.shared_convs.3.norm_layer.weight': (256,),
    'roi_head.bbox_head.shared_fcs.0.weight': (1024, 12544),
    'roi_head.mask_head.convs.0.norm_layer.weight': (256,),
    'roi_head.mask_head.convs.3.conv.weight': (256, 256, 3, 3),
    'roi_head.mask_head.upsample.weight': (256, 256, 2, 2),
    'roi_head.mask_head.conv_logits.weight': (80, 256, 1, 1),
}


def test_the_teacher_has_the_published_keys(teacher):
    own = {k: tuple(v.shape) for k, v in teacher.state_dict().items()}
    assert {k: own.get(k) for k in PUBLISHED} == PUBLISHED
    # No convolution before a norm has a bias, and no key is of another kind.
    assert not any(k.endswith('.conv.bias') and 'rpn' not in k for k in own)
    kinds = {k.split('.')[0] for k in own}
    assert kinds == {'backbone', 'neck', 'rpn_head', 'roi_head'}


def test_the_teacher_is_of_the_published_size(teacher):
    backbone = sum(p.numel() for p in teacher.backbone.parameters())
    # A ViT-B without class token and final norm, and its relative positions.
    relative = 64 * 2 * (8 * 27 + 4 * 127)
    assert backbone == 85_798_656 - 768 - 1536 + relative


@pytest.mark.parametrize('size', SIZES)
def test_students_are_plain_vits(size, teacher):
    run = Config.fromfile(COCO / f'dfkd_vitdet-b_to_vitdet-{size}_coco.py')
    spec = {k: v for k, v in run.model.student.items() if k != 'init'}
    net = build_network(student_config(spec, Config.fromfile(run.model.teacher.config)))
    arch = net.backbone.arch
    dims, heads, hidden = SIZES[size]
    assert (arch.embed_dims, arch.num_heads, arch.feedforward_channels) == (dims, heads, hidden)
    assert arch.num_layers == 12
    assert net.backbone.global_indices == (2, 5, 8, 11)
    # Heads are 64 wide, as the teacher's.
    assert net.backbone.blocks[0].attn.rel_pos_h.shape == (27, 64)
    # Pyramid and heads keep the teacher's widths.
    for name in ('rpn_head', 'roi_head'):
        shapes = [
            {k: v.shape for k, v in getattr(n, name).state_dict().items()} for n in (net, teacher)
        ]
        assert shapes[0] == shapes[1]


def test_every_run_is_listed():
    meta = yaml.safe_load((COCO / 'metafile.yml').read_text())
    listed = {ROOT / model['Config'] for model in meta['Models']}
    assert set(COCO.glob('dfkd_*.py')) <= listed and all(path.is_file() for path in listed)
    known = {collection['Name'] for collection in meta['Collections']}
    assert {model['In Collection'] for model in meta['Models']} == known
    readme = (COCO / 'README.md').read_text()
    assert [path.name for path in listed if f'({path.name})' not in readme] == []


@pytest.fixture(scope='module')
def small_teacher(tmp_path_factory) -> tuple[Path, Path]:
    """The same architecture, four blocks and 256 channels; random weights."""
    folder = tmp_path_factory.mktemp('teacher')
    cfg = Config.fromfile(TEACHER)
    cfg.model.backbone.arch = dict(
        embed_dims=256,
        num_layers=4,
        num_heads=4,
        feedforward_channels=512,
        global_indices=(1, 3),
    )
    cfg.model.backbone.img_size = 224
    cfg.model.neck.update(in_channels=256, out_channels=32)
    cfg.model.rpn_head.update(in_channels=32, feat_channels=32)
    roi = cfg.model.roi_head
    for extractor in (roi.bbox_roi_extractor, roi.mask_roi_extractor):
        extractor.out_channels = 32
    roi.bbox_head.update(in_channels=32, conv_out_channels=16, fc_out_channels=64)
    roi.mask_head.update(in_channels=32, conv_out_channels=16)
    cfg.model.test_cfg.rpn.max_per_img = 20
    cfg.dump(folder / 'teacher.py')
    return folder / 'teacher.py', random_checkpoint(folder / 'teacher.py', folder / 'teacher.pth')


@pytest.mark.parametrize('size', SIZES)
def test_two_steps_at_reduced_size(size, small_teacher, tmp_path):
    config, weights = small_teacher
    run_tool(
        ROOT / 'tools' / 'train.py',
        COCO / f'dfkd_vitdet-b_to_vitdet-{size}_coco.py',
        '--work-dir',
        tmp_path / 'run',
        cwd=tmp_path,
        options=(
            *TWO_STEPS,
            *FEW_IMAGES['pool'],
            *NO_VALIDATION,
            f'model.teacher.config={config}',
            f'model.teacher.checkpoint={weights}',
            'train_dataloader.dataset.image_size=128',
            # Mixed precision needs a GPU.
            'optim_wrapper.type=OptimWrapper',
        ),
    )
    run = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert (run['steps'], run['train_images_read']) == (2, 0)
    start, student = (
        torch.load(tmp_path / 'run' / name, weights_only=True)['state_dict']
        for name in ('student_start.pth', 'student.pth')
    )
    # Every part is reached by a distill head, the mask head too.
    assert any('.mask_head.' in key for key in start)
    assert [key for key in start if torch.equal(start[key], student[key])] == []
    heads = {'s': 2, 'ti': 1}[size]
    assert student['backbone.blocks.0.attn.qkv.weight'].shape[0] == 3 * 64 * heads
