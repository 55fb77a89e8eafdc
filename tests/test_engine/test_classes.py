"""Which classes datasets and networks declare, and what may differ."""

import pytest
from mmengine.config import Config

from mmdfkd.engine.classes import (
    check_classes,
    class_names_of,
    declared_classes,
    declared_metainfo,
)


def config(classes=None, split='val', **dataset):
    if classes is not None:
        dataset['metainfo'] = dict(classes=classes)
    return Config({f'{split}_dataloader': dict(dataset=dataset), 'default_scope': 'mmdet'})


def test_names_are_those_of_the_run_then_the_teachers_then_numbers():
    run, teacher, silent = config(('a', 'b')), config(('c', 'd'), split='test'), Config({})
    assert class_names_of(run, teacher, 2) == ['a', 'b']
    assert class_names_of(silent, teacher, 2) == ['c', 'd']
    assert class_names_of(run, teacher, 11)[:2] == ['00', '01']


def test_wrappers_and_kinds_declare_classes():
    inner = dict(type='CocoDataset', metainfo=dict(classes=('a', 'b')))
    assert declared_classes(config(type='RepeatDataset', dataset=inner), 2) == ('a', 'b')
    names = declared_classes(config(type='mmdet.CocoDataset'), 80)
    assert len(names) == 80 and names[0] == 'person'
    # Another number of classes is not what the network has.
    assert declared_classes(config(type='mmdet.CocoDataset'), 2) is None


def test_names_in_a_file(tmp_path):
    """As mmengine reads them."""
    (tmp_path / 'names.txt').write_text('car\nperson\n')
    assert declared_classes(config(str(tmp_path / 'names.txt')), 2) == ('car', 'person')
    assert declared_classes(config(str(tmp_path / 'gone.txt')), len(str(tmp_path))) is None
    assert 'classes' not in declared_metainfo(config('ab'), 'val')


def test_what_differs():
    known = ('car', 'person', 'dog')
    check_classes('the set', known, 3, known)
    check_classes('the set', None, 3, known)
    check_classes('the set', ('dog', 'car', 'person'), 3, None)
    # As many of other names, in another language, say.
    check_classes('the set', ('Auto', 'Mensch', 'Hund'), 3, known)
    with pytest.raises(ValueError, match='teacher has 3 classes and the set 2'):
        check_classes('the set', known[:2], 3, known)
    with pytest.raises(ValueError, match="class 1 is 'dog' there and 'person' of the teacher"):
        check_classes('the set', ('car', 'dog', 'person'), 3, known)
