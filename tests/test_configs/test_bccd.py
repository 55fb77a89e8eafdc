"""BCCD's runs are the digits' but for teacher, images' size, batch and set."""

import pytest
from mmengine.config import Config
from tiny_runs import ROOT

ROWS = ('noise', 'procedural', 'refined', 'inverted', 'mixture')
# What a set brings: the rest of a run is the same for every set.
OF_THE_SET = {
    'data_root', 'classes', 'image_scale', 'test_pipeline', 'max_iters', 'train_cfg',
    'param_scheduler', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator',
}  # fmt: skip


def _load(name: str) -> dict:
    return Config.fromfile(ROOT / 'configs' / f'{name}.py').to_dict()


@pytest.mark.parametrize('row', [None, *ROWS])
def test_settings_are_the_digits_unchanged(row):
    digits = _load(f'digits/dfkd_{row}' if row else 'dfkd_vitdet')
    bccd = _load(f'bccd/dfkd_{row}' if row else 'bccd/dfkd_vitdet')
    for cfg in (digits, bccd):
        assert set(cfg['model'].pop('teacher')) == {'config', 'checkpoint'}
        assert cfg['train_dataloader'].pop('batch_size')
        for name in ('image_size', 'metainfo'):
            assert cfg['train_dataloader']['dataset'].pop(name)
    assert set(digits) | {'image_scale'} == set(bccd)
    for key in set(digits) - OF_THE_SET:
        assert digits[key] == bccd[key], key


def test_train_val_and_test_are_three_files():
    cfg = _load('bccd/dfkd_real')
    files = [
        cfg[f'{split}_dataloader']['dataset']['ann_file'] for split in ('train', 'val', 'test')
    ]
    assert len(set(files)) == 3
    for split in ('val', 'test'):
        assert cfg[f'{split}_evaluator']['ann_file'].endswith(
            cfg[f'{split}_dataloader']['dataset']['ann_file']
        )


def test_the_images_have_the_shape_of_the_photographs():
    """They are 4:3 and upright: height first, as the synthetic dataset wants it."""
    cfg = _load('bccd/dfkd_vitdet')
    assert tuple(cfg['train_dataloader']['dataset']['image_size']) == (192, 256)
    assert tuple(cfg['image_scale']) == (256, 192)
