"""Missing files of a set are named with the setting, before anything is built."""

import re

import pytest
from mmengine.config import Config

from mmdfkd.utils.set_files import check_set_files


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / 'set' / 'val').mkdir(parents=True)
    (tmp_path / 'set' / 'val.json').write_text('{}')
    loader = dict(
        dataset=dict(
            type='CocoDataset',
            data_root=str(tmp_path / 'set'),
            ann_file='val.json',
            data_prefix=dict(img='val/', seg='never_made/'),
        )
    )
    metric = dict(type='CocoMetric', ann_file=str(tmp_path / 'set' / 'val.json'))
    return Config(dict(val_dataloader=loader, val_evaluator=metric))


def refused(cfg, what, setting):
    with pytest.raises(FileNotFoundError, match=f'no {re.escape(str(what))}, which {setting} '):
        check_set_files(cfg, 'train', 'val')


def test_what_is_there_passes(cfg):
    check_set_files(cfg, 'train', 'val', 'test')


def test_each_missing_file_is_named(cfg, tmp_path):
    for change, what, setting in (
        ({'val_dataloader.dataset.ann_file': 'gone.json'}, 'set/gone.json', 'dataset.ann_file'),
        ({'val_dataloader.dataset.data_root': str(tmp_path / 'a')}, 'a/val.json', 'ann_file'),
        ({'val_dataloader.dataset.data_prefix.img': 'b/'}, 'set/b', 'dataset.data_prefix'),
        ({'val_dataloader.dataset.data_prefix': 'c'}, 'set/c', 'dataset.data_prefix'),
        # No home directory: mmengine takes it as it is.
        ({'val_dataloader.dataset.data_prefix.img': '~/'}, 'set/~', 'dataset.data_prefix'),
        ({'val_evaluator.ann_file': str(tmp_path / 'd.json')}, 'd.json', 'val_evaluator.ann_file'),
    ):
        wrong = cfg.copy()
        wrong.merge_from_dict(change)
        with pytest.raises(FileNotFoundError, match='val_cfg=None') as error:
            check_set_files(wrong, 'val')
        assert f'{tmp_path / what}, which val_' in str(error.value)
        assert f'{setting} names' in str(error.value)
        # Of a stage that is not run nothing is asked.
        check_set_files(wrong, 'train', 'test')


def test_sets_within_sets(cfg, tmp_path):
    inner = cfg.val_dataloader.dataset.to_dict()
    wrong = dict(inner, ann_file=str(tmp_path / 'gone.json'))
    for outer in (
        dict(type='RepeatDataset', dataset=wrong),
        dict(type='ConcatDataset', datasets=[inner, wrong]),
    ):
        many = Config(dict(train_dataloader=dict(dataset=outer)))
        refused(many, tmp_path / 'gone.json', r'train_dataloader\.dataset\.dataset\S*ann_file')
    refused(
        Config(dict(val_evaluator=[dict(type='A'), dict(ann_file=str(tmp_path / 'x'))])),
        tmp_path / 'x',
        r'val_evaluator\[1\]\.ann_file',
    )


def test_files_elsewhere_are_not_looked_for(cfg):
    for change in (
        dict(ann_file='gone.json', backend_args=dict(backend='petrel')),
        dict(data_root='s3://bucket/set', ann_file='gone.json'),
        # Made in memory, or downloaded by the dataset itself.
        dict(type='mmdfkd.SyntheticDataset', data_root='gone', ann_file=''),
    ):
        other = cfg.copy()
        other.val_dataloader.dataset.update(change)
        check_set_files(other, 'val')
