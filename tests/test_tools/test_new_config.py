import copy
import json
import runpy
from pathlib import Path

import pytest
import torch
import toy
from mmengine.config import Config
from tiny_runs import FEW_IMAGES, ROOT, TWO_STEPS, random_checkpoint, run_tool

from mmdfkd.datasets.digits import DetectionSpec, write_classification, write_detection
from mmdfkd.utils.key_report import CheckpointMismatchError

TOOL = ROOT / 'tools' / 'new_config.py'
ERRORS = (FileNotFoundError, KeyError, TypeError, ValueError, CheckpointMismatchError)
TEACHERS = {
    'classifier': ROOT / 'configs/digits/deit_digits.py',
    'two-stage': ROOT / 'configs/digits/vitdet_digits.py',
    'DETR-like': ROOT / 'configs/digits/deformable_detr_digits.py',
}


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(TOOL))


def _digits(family, folder):
    """A small test set, elsewhere than where the teacher's config says."""
    if family == 'classifier':
        return write_classification(folder, report=str)
    return write_detection(folder, DetectionSpec(train=1, val=2), workers=1, report=str)


@pytest.mark.parametrize('family', TEACHERS)
def test_a_written_run_trains_and_tests(family, tool, tmp_path, monkeypatch):
    if family == 'classifier':
        weights = random_checkpoint(TEACHERS[family], tmp_path / 'teacher.pth')
    else:
        # Random weights detect nothing, and a scene needs something that is detected.
        weights = TEACHERS[family].with_suffix('.pth')
    root = _digits(family, tmp_path / 'data')
    out = tmp_path / 'runs' / 'mine.py'
    arguments = [TEACHERS[family], weights, '--out', out, '--data-root', root, '--depth', 0.5]
    monkeypatch.setattr('sys.argv', ['new_config.py', *map(str, arguments)])
    tool['main']()
    text = out.read_text()
    assert '_base_' not in text.replace('_base_lr', '')
    cfg = Config.fromfile(out)
    assert Path(cfg.test_dataloader.dataset.data_root) == root
    assert cfg.image_size == ((32, 32) if family == 'classifier' else (128, 128))
    assert cfg.model.student.depth == 0.5
    work_dir = tmp_path / 'run'
    options = (
        *TWO_STEPS,
        *FEW_IMAGES['pool' if family == 'classifier' else 'scenes'],
        'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
    )
    log = run_tool(
        ROOT / 'tools/train.py', out, '--work-dir', work_dir, cwd=tmp_path, options=options
    )
    assert ('accuracy/top1' if family == 'classifier' else 'coco/bbox_mAP') in log
    run = json.loads((work_dir / 'run.json').read_text())
    assert run['steps'] == 2
    assert run['train_images_read'] == 0
    student = torch.load(work_dir / 'student.pth', weights_only=True)['state_dict']
    teacher = torch.load(weights, weights_only=True)['state_dict']
    assert sum(v.numel() for v in student.values()) < sum(v.numel() for v in teacher.values())


@pytest.fixture
def fails(tool, tmp_path, monkeypatch):
    """The message with which the tool refuses its arguments; nothing may have been written."""

    def fail(*arguments):
        monkeypatch.setattr('sys.argv', ['new_config.py', *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ERRORS) as caught:
            tool['main']()
        assert not (tmp_path / 'dfkd_run.py').exists()
        return str(caught.value)

    return fail


def test_errors_write_nothing(fails, tmp_path):
    teacher = TEACHERS['classifier']
    assert 'There is no checkpoint nowhere.pth' in fails(teacher, 'nowhere.pth')
    weights = random_checkpoint(teacher, tmp_path / 'teacher.pth')
    assert 'There is no config' in fails('mmdet::none.py', weights)
    # One-stage: no adapter runs it.
    cfg = dict(
        model=dict(
            type='RetinaNet',
            backbone=dict(type='mmdet.ResNet', depth=18, out_indices=(3,)),
            neck=dict(type='mmdet.FPN', in_channels=[512], out_channels=8, num_outs=1),
            bbox_head=dict(
                type='mmdet.FSAFHead',
                num_classes=2,
                in_channels=8,
                feat_channels=8,
                stacked_convs=1,
                anchor_generator=dict(
                    type='AnchorGenerator', strides=[32], ratios=[1.0], scales=[8]
                ),
            ),
        ),
        default_scope='mmdet',
        test_dataloader=dict(dataset=dict(type='CocoDataset', pipeline=[])),
        test_evaluator=dict(type='CocoMetric'),
    )
    Config(cfg).dump(tmp_path / 'retina.py')
    message = fails('retina.py', weights)
    assert 'RetinaNet' in message
    assert 'classifier' in message
    assert 'two-stage' in message
    other = random_checkpoint(TEACHERS['two-stage'], tmp_path / 'other.pth')
    assert 'Likely cause' in fails(teacher, other)


@pytest.mark.parametrize(
    'arguments',
    [
        ('--max-iters', '-5'),
        ('--max-iters', '1'),
        ('--batch-size', '0'),
        ('--pool-size', 'many'),
        ('--image-size', '32', '7', '32'),
        ('--image-size', '0'),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tool, arguments, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['new_config.py', 'teacher.py', 'teacher.pth', *arguments])
    with pytest.raises(SystemExit):
        tool['main']()
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ('teacher', 'student', 'heads'),
    [
        ('DETR-like', 'DETR-like', ['EncoderMemory', 'RPNResponse', 'HungarianQuery']),
        ('DETR-like', 'two-stage', ['BoxResponse', 'PseudoLabel']),
        ('two-stage', 'two-stage', ['Pyramid', 'RPNResponse', 'RoIResponse']),
    ],
)
def test_a_student_of_its_own_follows_what_both_have(
    teacher, student, heads, tool, tmp_path, monkeypatch
):
    teacher, student = TEACHERS[teacher], TEACHERS[student]
    out = tmp_path / 'run.py'
    arguments = [teacher, teacher.with_suffix('.pth'), '--student', student, '--out', out]
    monkeypatch.setattr('sys.argv', ['new_config.py', *map(str, arguments), '--max-iters', '20'])
    tool['main']()
    cfg = Config.fromfile(out)
    assert [head.type for head in cfg.model.heads] == [f'mmdfkd.{name}Head' for name in heads]
    rising, falling = cfg.param_scheduler
    assert (rising.end, falling.begin, falling.end, falling.T_max) == (10, 10, 20, 10)


def test_a_dense_detector_and_imports_that_are_one_name(tool, tmp_path, monkeypatch):
    model = copy.deepcopy(toy.one_stage_model('retina'))
    cfg = toy.whole(model)
    cfg.update(
        custom_imports=dict(imports='mmdfkd', allow_failed_imports=False),
        test_dataloader=dict(dataset=dict(type='CocoDataset', pipeline=[])),
        test_evaluator=dict(type='CocoMetric'),
    )
    Config(cfg).dump(tmp_path / 'retina.py')
    torch.save(toy.build(model).state_dict(), tmp_path / 'retina.pth')
    arguments = ['retina.py', 'retina.pth', '--student', 'retina.py', '--image-size', '64']
    monkeypatch.setattr('sys.argv', ['new_config.py', *arguments])
    monkeypatch.chdir(tmp_path)
    tool['main']()
    run = Config.fromfile('dfkd_run.py')
    assert [h.type for h in run.model.heads] == ['mmdfkd.PyramidHead', 'mmdfkd.DenseResponseHead']
    assert run.custom_imports.imports == ['mmdfkd']


def _sized(tool, pipeline, **model):
    dataset = dict(type='X', pipeline=pipeline)
    cfg = Config(dict(model=dict(backbone=dict(type='Y', **model.pop('backbone', {})), **model)))
    return tool['image_size_of'](cfg, dict(test_dataloader=dict(dataset=dataset)))


def test_image_sizes_follow_the_test_pipeline(tool):
    resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    # Within 1333 x 800, a 4:3 image is 1067 x 800; both become multiples of 32.
    assert _sized(tool, [resize], data_preprocessor=dict(pad_size_divisor=32)) == (800, 1088)
    square = dict(type='mmdet.Resize', scale=(1024, 1024), keep_ratio=True)
    assert _sized(tool, [square]) == (1024, 1024)
    assert _sized(tool, [resize, dict(type='Pad', size=(640, 480))]) == (480, 640)
    edge = dict(type='ResizeEdge', scale=256, edge='short')
    assert _sized(tool, [edge, dict(type='CenterCrop', crop_size=224)]) == (224, 224)
    assert _sized(tool, [dict(type='PackInputs')], backbone=dict(img_size=32)) == (32, 32)
    with pytest.raises(ValueError, match='--image-size'):
        _sized(tool, [])


def test_data_root_moves_dataset_and_evaluator(tool):
    evaluation = dict(
        test_dataloader=dict(dataset=dict(data_root='data/coco/', ann_file='a.json')),
        test_evaluator=dict(ann_file='data/coco/a.json', metric='bbox', other='data/coconut'),
    )
    moved = tool['with_data_root'](evaluation, '/d')
    assert moved['test_dataloader']['dataset'] == dict(data_root='/d/', ann_file='a.json')
    assert moved['test_evaluator'] == dict(
        ann_file='/d/a.json', metric='bbox', other='data/coconut'
    )
    with pytest.raises(ValueError, match='no data_root'):
        tool['with_data_root'](dict(test_dataloader=dict(dataset=dict(type='X'))), '/d')


def test_an_evaluation_that_only_writes_files_is_none(tool):
    cfg = Config(
        dict(
            val_dataloader=dict(name='val'),
            val_evaluator=dict(name='val'),
            test_dataloader=dict(name='test-dev'),
            test_evaluator=dict(name='test-dev', format_only=True),
        )
    )
    found = tool['evaluation_of'](cfg)
    assert {part['name'] for part in found.values()} == {'val'} and len(found) == 4
    cfg.test_evaluator.format_only = False
    assert tool['evaluation_of'](cfg)['test_dataloader'] == dict(name='test-dev')
    cfg.merge_from_dict(dict(test_evaluator=dict(format_only=True), val_evaluator=None))
    with pytest.raises(KeyError, match='that scores'):
        tool['evaluation_of'](cfg)


def test_class_names_in_a_file(tool, tmp_path, monkeypatch):
    """As mmengine reads them."""
    teacher = Config.fromfile(TEACHERS['classifier'])
    (tmp_path / 'names.txt').write_text(''.join(f'digit{i}\n' for i in range(10)))
    for split in ('val', 'test'):
        teacher[f'{split}_dataloader'].dataset.metainfo = dict(classes=str(tmp_path / 'names.txt'))
    teacher.dump(tmp_path / 'teacher.py')
    weights = TEACHERS['classifier'].with_suffix('.pth')
    out = tmp_path / 'mine.py'
    arguments = [tmp_path / 'teacher.py', weights, '--out', out]
    monkeypatch.setattr('sys.argv', ['new_config.py', *map(str, arguments)])
    tool['main']()
    meta = Config.fromfile(out).train_dataloader.dataset.metainfo
    assert meta == dict(classes=tuple(f'digit{i}' for i in range(10)))
