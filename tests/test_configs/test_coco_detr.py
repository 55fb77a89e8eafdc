"""COCO's DETRs: the shipped runs, two iterations each, reduced by options of the command line."""

import json

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from tiny_runs import FEW_IMAGES, NO_VALIDATION, ROOT, TWO_STEPS, random_checkpoint

COCO = ROOT / 'configs' / 'coco'


def options(*pairs: str) -> dict:
    """As the train tool reads ``--cfg-options``."""
    made = (pair.split('=', 1) for pair in pairs)
    return {key: DictAction._parse_iterable(value) for key, value in made}


def small_dino(folder):
    """The same teacher with four blocks, 128 channels and one layer each; random weights."""
    cfg = Config.fromfile(COCO / 'dino-4scale_vit-b-mae.py')
    model = cfg.model
    model.backbone.arch = dict(
        embed_dims=128, num_layers=4, num_heads=2, feedforward_channels=256, global_indices=(1, 3)
    )
    model.backbone.update(img_size=224, init_cfg=None)
    model.neck.in_channels = 128
    model.encoder.num_layers = model.decoder.num_layers = 1
    model.num_queries = 50
    cfg.dump(folder / 'teacher.py')
    return folder / 'teacher.py'


def run(name, config, size, folder, *more):
    weights = random_checkpoint(config, folder / 'teacher.pth')
    cfg = Config.fromfile(COCO / name)
    cfg.merge_from_dict(
        options(
            *TWO_STEPS,
            *FEW_IMAGES['pool'],
            *NO_VALIDATION,
            f'model.teacher.config={config}',
            f'model.teacher.checkpoint={weights}',
            f'train_dataloader.dataset.image_size={size}',
            f'model.image_size={size}',
            # Mixed precision needs a GPU.
            'optim_wrapper.type=OptimWrapper',
            *more,
        )
    )
    # Formatting the text of a config takes most of a tiny run.
    cfg = Config(cfg.to_dict(), format_python_code=False)
    cfg.work_dir = str(folder / 'run')
    cfg.log_level = 'ERROR'
    Runner.from_cfg(cfg).train()
    done = json.loads((folder / 'run' / 'run.json').read_text())
    assert (done['steps'], done['train_images_read']) == (2, 0)
    return tuple(
        torch.load(folder / 'run' / f'{which}.pth', weights_only=True)['state_dict']
        for which in ('student_start', 'student')
    )


def test_detr_r50_to_r18(tmp_path):
    """Both networks whole, at 64 px; ImageNet's weights stay where they are."""
    from mmengine.utils import get_installed_path

    folder = f'{get_installed_path("mmdet")}/.mim/configs/detr'
    start, student = run(
        'dfkd_detr-r50_to_detr-r18_coco.py',
        f'{folder}/detr_r50_8xb2-150e_coco.py',
        64,
        tmp_path,
        'model.student.init=random',
    )
    moved = {k for k in start if not torch.equal(start[k], student[k])}
    assert {
        'query_embedding.weight',
        'bbox_head.fc_cls.weight',
        'neck.convs.0.conv.weight',
    } <= moved
    # The published student freezes its stem and first stage.
    assert not any(k.startswith(('backbone.conv1', 'backbone.layer1')) for k in moved)


def test_inherited_dinos_have_the_heads_of_inherited_detrs():
    usual = Config.fromfile(ROOT / 'configs' / '_base_' / 'dfkd_detr.py').model.heads
    for size in ('s', 'ti'):
        heads = Config.fromfile(COCO / f'dfkd_dino-vitdet-b_to_vitdet-{size}_coco.py').model.heads
        assert heads[0].type == 'mmdfkd.PyramidHead' and heads[1:] == usual


@pytest.mark.parametrize('size', ['s', 'ti'])
def test_dino_with_vitdet(size, tmp_path):
    start, student = run(
        f'dfkd_dino-vitdet-b_to_vitdet-{size}_coco.py',
        small_dino(tmp_path),
        128,
        tmp_path,
        'model.inheritance.method=select',
    )
    # Of two heads of 64 one is left.
    assert student['backbone.blocks.0.attn.qkv.weight'].shape[0] == 3 * 64
    moved = [k for k in start if not torch.equal(start[k], student[k])]
    assert any(k.startswith('backbone.blocks.3') for k in moved)
    assert any(k.startswith('decoder.layers.0') for k in moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'teacher', 'size'),
    [
        ('dfkd_detr-r101_to_detr-r18_coco.py', 'detr/detr_r101_8xb2-500e_coco.py', 64),
        # 900 queries are chosen among the tokens.
        ('dfkd_dino-r50_to_dino-r18_coco.py', 'dino/dino-4scale_r50_8xb2-12e_coco.py', 224),
    ],
)
def test_the_larger_pairs(config, teacher, size, tmp_path):
    from mmengine.utils import get_installed_path

    path = f'{get_installed_path("mmdet")}/.mim/configs/{teacher}'
    start, student = run(config, path, size, tmp_path, 'model.student.init=random')
    moved = {k.split('.')[0] for k in start if not torch.equal(start[k], student[k])}
    assert {'backbone', 'neck', 'encoder', 'decoder', 'bbox_head'} <= moved
