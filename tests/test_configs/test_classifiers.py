"""Small classifiers' data-free runs: alike for every set, and every row steps."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, DefaultScope
from tiny_runs import ROOT, random_checkpoint

import mmdfkd  # noqa: F401
from mmdfkd.registry import MODELS

SETS = ('cifar10', 'mnist', 'digits_deit')
ROWS = (
    'noise',
    'procedural',
    'refined',
    'inverted',
    'mixture',
    'generator',
    'dafl',
    'real',
)
# What a set brings: the rest of a run is the same for every set.
OF_THE_SET = {
    'data_root', 'classes', 'image_size', 'max_iters', 'train_cfg', 'param_scheduler',
    'test_pipeline', 'val_dataloader', 'test_dataloader', 'base',
}  # fmt: skip
FEW = dict(pool_size=4, images=2, batch=2, steps=3, every=1)


def _load(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


@pytest.mark.parametrize('row', ['vit', *ROWS])
def test_settings_are_the_same_for_every_set(row):
    found = []
    for name in SETS:
        cfg = _load(f'{name}/dfkd_{row}').to_dict()
        assert set(cfg['model'].pop('teacher')) == {'config', 'checkpoint'}
        dataset = cfg['train_dataloader']['dataset']
        assert dataset.pop('metainfo')['classes'] == cfg['classes']
        size = cfg['image_size']
        assert dataset.pop('image_size', size) == size
        assert cfg['model'].pop('image_size', size) == size
        # A generator starts at a quarter of the image.
        source = cfg['model']['source']
        assert source.pop('generator', dict(base=size // 4)) == dict(base=size // 4)
        if row == 'real':
            assert dataset.pop('data_root') == cfg['data_root']
            assert dataset['pipeline'].pop(1)['scale'] == size
        found.append({key: value for key, value in cfg.items() if key not in OF_THE_SET})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize('name', ['cifar10', 'mnist'])
def test_training_never_names_the_test_split(name):
    for row in ROWS:
        cfg = _load(f'{name}/dfkd_{row}')
        dataset = cfg.train_dataloader.dataset
        assert dataset.type == ('CustomDataset' if row == 'real' else 'mmdfkd.SyntheticDataset')
        assert dataset.get('data_prefix', 'train') == 'train'
        assert cfg.test_dataloader.dataset.data_prefix == 'test'


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """As CIFAR-10's, a quarter as wide: its config and random weights."""
    cfg = _load('cifar10/vit_cifar10')
    cfg.model.backbone.arch.update(embed_dims=32, feedforward_channels=32)
    cfg.model.head.in_channels = 32
    path = tmp_path_factory.mktemp('teacher') / 'vit.py'
    cfg.dump(path)
    return path, random_checkpoint(path, path.with_suffix('.pth'))


def _lessen(source: dict) -> None:
    """Next to nothing of what a source makes."""
    source.update({key: value for key, value in FEW.items() if key in source})
    if 'pool_size' in source:
        source['num_workers'] = 0
    if 'source' in source:
        _lessen(source['source'])


def _two_steps(cfg: Config, teacher, folder) -> tuple:
    """The distiller after two steps, and the log of the second."""
    config, checkpoint = teacher
    cfg.model.teacher = dict(config=str(config), checkpoint=str(checkpoint))
    cfg.model.inheritance = dict(images=9)
    _lessen(cfg.model.source)
    distiller = MODELS.build(cfg.model)
    distiller.seed, distiller.image_size = 0, (cfg.image_size,) * 2
    distiller.folder = folder
    distiller.init_weights()
    wrapper = build_optim_wrapper(distiller, cfg.optim_wrapper)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for distiller.iteration in range(2):
        items = [dataset[2 * distiller.iteration + i] for i in range(2)]
        log = distiller.train_step(pseudo_collate(items), wrapper)
    return distiller, log


@pytest.mark.parametrize('row', ROWS)
def test_every_row_takes_two_steps(row, teacher, tmp_path):
    cfg = _load(f'cifar10/dfkd_{row}')
    if row == 'real':
        cfg.train_dataloader.dataset.data_root = str(_image_folder(tmp_path, cfg))
    distiller, log = _two_steps(cfg, teacher, tmp_path)
    assert {'loss_kl', 'loss_feature'} <= set(log)
    assert all(torch.isfinite(value).all() for value in log.values())
    assert distiller.data_free == (row != 'real')
    made = {'refined', 'generator', 'dafl'}
    assert (row in made) == any('/' in name for name in log)


@pytest.mark.parametrize('name', ['cifar10', 'mnist'])
def test_the_first_paper_has_its_terms(name, teacher, tmp_path):
    cfg = _load(f'dfkt/{name}_vit')
    if name == 'mnist':
        # Its teacher is a smaller image's: only what is built is looked at.
        distiller = MODELS.build(cfg.model)
        assert distiller.source.generator.base == (7, 7)
        return
    distiller, log = _two_steps(cfg, teacher, tmp_path)
    assert distiller.init == 'random'
    assert {'loss_kl', 'loss_ce', 'loss_probe'} <= set(log)
    terms = {'generator/class', 'generator/information_entropy', 'generator/attention_focus'}
    assert terms <= set(log)
    # Blocks at a third, two thirds and all of the depth, of both.
    taps = distiller.student.needs
    for names, adapter in (
        (taps.taps_student, distiller.student.adapter),
        (taps.taps_teacher, distiller.teacher.adapter),
    ):
        depth = len(adapter.net.backbone.layers)
        blocks = [int(tap.rsplit('.', 1)[1]) + 1 for tap in names]
        assert blocks == [int(depth * share + 0.5) for share in (1 / 3, 2 / 3, 1)]


def _image_folder(folder, cfg):
    """One image of every class."""
    rng = np.random.default_rng(0)
    for label in cfg.classes:
        path = folder / 'data' / 'train' / label
        path.mkdir(parents=True)
        image = rng.integers(0, 256, (cfg.image_size, cfg.image_size, 3), dtype=np.uint8)
        cv2.imwrite(str(path / '0.png'), image)
    return folder / 'data'
