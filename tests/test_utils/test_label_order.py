"""Sets that number their labels otherwise than their metainfo says are refused."""

import json

import cv2
import numpy as np
import pytest
import toy

from mmdfkd.evaluation import test_network as run_test
from mmdfkd.utils.label_order import check_label_order


@pytest.fixture
def cfg(tmp_path):
    return toy.run_config(tmp_path)


def rewrite(folder, change):
    path = folder / 'data' / 'annotations.json'
    content = json.loads(path.read_text())
    content['categories'] = change(content['categories'])
    path.write_text(json.dumps(content))


def test_the_files_order_is_that_of_the_classes(cfg, tmp_path):
    check_label_order(toy.runner_of(cfg).val_loop)
    # Ids and further categories do not matter.
    rewrite(tmp_path, lambda c: [dict(id=99, name='tree'), *c])
    check_label_order(toy.runner_of(cfg).test_loop)


def test_another_order_is_refused(cfg, tmp_path):
    rewrite(tmp_path, lambda c: [c[2], c[0], c[1]])
    told = r"categories as 'bar', 'disc', 'square', and .* classes are 'disc', 'square', 'bar'"
    # What it is about: mmdet's labels follow the file.
    loop = toy.runner_of(cfg).test_loop
    assert loop.dataloader.dataset.cat2label == {2: 0, 0: 1, 1: 2}
    with pytest.raises(ValueError, match=f'The ann_file of CocoMetric lists its {told}'):
        check_label_order(loop)
    for key in ('val', 'test'):
        cfg[f'{key}_evaluator'].pop('ann_file')
    with pytest.raises(ValueError, match=rf'annotations\.json lists its {told}'):
        check_label_order(toy.runner_of(cfg).test_loop)
    # Before the first step of a run, and before the first figure of a report.
    with pytest.raises(ValueError, match=told):
        toy.runner_of(cfg).train()
    assert not list((tmp_path / 'run').glob('*.pth'))
    teacher = dict(cfg, model=toy.detector_model())
    path = toy.write_config(teacher, tmp_path / 'teacher.py')
    with pytest.raises(ValueError, match=told):
        run_test(path, tmp_path / 'teacher.pth', tmp_path / 'log')


def test_sets_within_sets(cfg, tmp_path):
    rewrite(tmp_path, lambda c: c[::-1])
    inner = cfg['test_dataloader']['dataset']
    cfg['test_evaluator'] = dict(type='DumpResults', out_file_path=str(tmp_path / 'x.pkl'))
    cfg['test_dataloader']['dataset'] = dict(type='ConcatDataset', datasets=[inner, inner])
    with pytest.raises(ValueError, match='lists its categories'):
        check_label_order(toy.runner_of(cfg).test_loop)


def test_a_missing_or_misspelt_category_is_refused(cfg, tmp_path):
    rewrite(tmp_path, lambda c: [c[0], dict(c[1], name='Square'), c[2]])
    with pytest.raises(ValueError, match=r"no category for 'square' among .*'Square'"):
        check_label_order(toy.runner_of(cfg).test_loop)


def folders_run(folder, classes, names):
    for name in names:
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / 'x.png'), np.zeros((8, 8, 3), np.uint8))
    cfg = toy.whole(toy.classifier_model(classes=2), 'mmpretrain')
    dataset = dict(type='CustomDataset', data_root=str(folder), pipeline=[])
    dataset['metainfo'] = dict(classes=classes)
    loader = dict(batch_size=1, num_workers=0, dataset=dataset)
    loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    cfg.update(test_dataloader=loader, test_evaluator=dict(type='Accuracy'), test_cfg={})
    return toy.runner_of(dict(cfg, work_dir=str(folder.parent / 'work')))


def test_folders_are_numbered_alphabetically(tmp_path):
    check_label_order(folders_run(tmp_path / 'a', ('cat', 'dog'), ('cat', 'dog')).test_loop)
    # Folders by other names than their classes, as ImageNet's.
    check_label_order(folders_run(tmp_path / 'b', ('dog', 'cat'), ('n1', 'n2')).test_loop)
    with pytest.raises(ValueError, match="numbered as 'cat', 'dog', and metainfo has 'dog', 'cat'"):
        check_label_order(folders_run(tmp_path / 'c', ('dog', 'cat'), ('cat', 'dog')).test_loop)
