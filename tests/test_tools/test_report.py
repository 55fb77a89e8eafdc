import importlib.util
import json
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config

import mmdfkd  # noqa: F401
from mmdfkd.evaluation import FinishedRunError, test_network
from mmdfkd.evaluation.run import pick_metrics, retention
from mmdfkd.utils.checkpoint import save_tensors
from mmdfkd.utils.key_report import CheckpointMismatchError

ROOT = Path(__file__).resolve().parents[2]


def _load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = _load('fake_run', Path(__file__).with_name('fake_run.py'))
tool = _load('report_tool', ROOT / 'tools' / 'report.py')


@pytest.fixture(scope='module')
def detection(tmp_path_factory):
    """A reported detection run: its folder and what was printed."""
    return _reported(tmp_path_factory.mktemp('detection'), 'detection', images=4)


@pytest.fixture(scope='module')
def classification(tmp_path_factory):
    return _reported(tmp_path_factory.mktemp('classification'), 'classification', images=8)


def _reported(folder: Path, kind: str, images: int) -> tuple[Path, str]:
    from contextlib import redirect_stdout
    from io import StringIO

    work_dir = folder / 'run'
    config = fake.write_run(work_dir, kind, images)
    printed = StringIO()
    with redirect_stdout(printed):
        tool.main([str(config), '--cfg-options', 'test_dataloader.batch_size=1', 'max_iters=9'])
    return work_dir, printed.getvalue()


def _json(work_dir: Path) -> dict:
    return json.loads((work_dir / 'report' / 'report.json').read_text())


def test_detection_report_holds_the_figures(detection):
    work_dir, _ = detection
    report = _json(work_dir)
    for who in ('teacher', 'student'):
        assert set(report[who]) == {
            'bbox_mAP',
            'bbox_mAP_50',
            'params',
            'backbone_params',
            'flops',
            'latency_ms',
        }
        assert 0 <= report[who]['bbox_mAP'] <= report[who]['bbox_mAP_50'] <= 1
        assert 0 < report[who]['backbone_params'] < report[who]['params']
        assert report[who]['latency_ms'] > 0
    assert report['student']['params'] < report['teacher']['params']
    assert report['student']['flops'] < report['teacher']['flops']
    facts = {k: report[k] for k in ('train_images_read', 'steps', 'seconds', 'seed', 'commit')}
    assert facts == dict(train_images_read=0, steps=7, seconds=12.5, seed=3, commit='abc1234')
    assert report['input_size'] == [128, 128]
    assert report['proposals'] == 200
    assert report['test_images'] == 4
    assert {'retention', 'retention_at_start', 'student_at_start', 'init', 'source'} <= set(report)
    own, start, teacher = (report[k] for k in ('student', 'student_at_start', 'teacher'))
    given = teacher['bbox_mAP_50'] >= 0.3
    for part, name in ((own, 'retention'), (start, 'retention_at_start')):
        share = part['bbox_mAP'] / teacher['bbox_mAP'] if given else None
        assert report[name] == (share and pytest.approx(share, abs=1e-3))


def test_parameters_are_those_of_the_files(detection):
    work_dir, _ = detection
    report = _json(work_dir)
    for who in ('teacher', 'student'):
        state = torch.load(work_dir / f'{who}.pth', weights_only=True)['state_dict']
        assert report[who]['params'] == sum(v.numel() for v in state.values())


def test_metrics_are_those_of_a_plain_test(detection, tmp_path):
    """The quiet test gives what mmengine's own Runner gives."""
    from mmengine.runner import Runner

    work_dir, _ = detection
    cfg = Config.fromfile(work_dir / 'student_config.py')
    cfg.work_dir, cfg.load_from = str(tmp_path), str(work_dir / 'student.pth')
    metrics = Runner.from_cfg(cfg).test()
    assert metrics['coco/bbox_mAP_50'] > 0
    assert metrics['coco/bbox_mAP_50'] == _json(work_dir)['student']['bbox_mAP_50']


def test_table_is_printed_last(detection):
    work_dir, printed = detection
    table, facts = printed.rstrip().split('\n\n')[-2:]
    rows = [line.split('  ')[0] for line in table.splitlines()]
    assert rows[2:] == ['teacher', 'student at start', 'student']
    assert [line.split('  ')[0] for line in facts.splitlines()][0] == 'retention'
    assert facts.splitlines()[-1].split() == ['seed', '3']
    # The runners' own output is in the logs alone.
    assert 'mmengine' not in printed
    assert 'Average Precision' not in printed
    assert 'Average Precision' in (work_dir / 'report' / 'tests' / 'teacher.log').read_text()


def test_pictures_are_readable(detection):
    work_dir, _ = detection
    folder = work_dir / 'report'
    grid = cv2.imread(str(folder / 'detections.png'))
    # Four rows of three 64 px images, enlarged.
    assert grid.shape[0] >= 4 * 128
    assert grid.shape[1] >= 3 * 128
    synthetic = cv2.imread(str(folder / 'synthetic.png'))
    assert synthetic.shape[0] >= 2 * 128
    assert cv2.imread(str(folder / 'curves.png')).std() > 5


def test_page_shows_the_same_table(detection):
    work_dir, _ = detection
    page = (work_dir / 'report' / 'README.md').read_text()
    assert '| student at start |' in page
    assert '![' in page
    assert all(name in page for name in ('synthetic.png', 'detections.png', 'curves.png'))
    assert str(_json(work_dir)['seed']) in page


def test_nothing_else_is_left(detection):
    work_dir, _ = detection
    left = {str(p.relative_to(work_dir / 'report')) for p in (work_dir / 'report').rglob('*')}
    logs = {f'tests/{name}.log' for name in ('teacher', 'student', 'student_at_start')}
    assert left == logs | {
        'tests',
        'README.md',
        'report.json',
        'synthetic.png',
        'detections.png',
        'curves.png',
    }


def test_classification_report(classification):
    work_dir, printed = classification
    report = _json(work_dir)
    for who in ('teacher', 'student'):
        assert set(report[who]) == {'accuracy', 'params', 'backbone_params', 'flops', 'latency_ms'}
        assert 0 <= report[who]['accuracy'] <= 100
    if report['teacher']['accuracy']:
        share = report['student']['accuracy'] / report['teacher']['accuracy']
        assert report['retention'] == pytest.approx(share, abs=1e-3)
    assert report['proposals'] is None
    assert 'accuracy (%)' in printed
    for name in ('detections.png', 'synthetic.png'):
        assert cv2.imread(str(work_dir / 'report' / name)).shape[0] > 64


def test_second_report_replaces_the_first(tmp_path):
    """A run without its start has none to show; no picture of before stays."""
    work_dir, _ = _reported(tmp_path, 'classification', images=2)
    assert (work_dir / 'report' / 'synthetic.png').exists()
    (work_dir / 'student_start.pth').unlink()
    (work_dir / 'synthetic_samples.pth').unlink()
    facts = json.loads((work_dir / 'run.json').read_text())
    (work_dir / 'run.json').write_text(
        json.dumps(facts | dict(data_free=False, train_images_read=64))
    )
    tool.main([str(work_dir.parent / 'tiny.py'), '--work-dir', str(work_dir)])
    report = _json(work_dir)
    assert report['retention_at_start'] is None
    assert not (work_dir / 'report' / 'synthetic.png').exists()
    page = (work_dir / 'report' / 'README.md').read_text()
    assert '64 (NOT data-free' in page
    assert 'synthetic.png' not in page


@pytest.mark.parametrize('name', ['student.pth', 'run.json', 'student_config.py'])
def test_missing_file_names_the_command(tmp_path, name):
    work_dir = tmp_path / 'run'
    config = fake.write_run(work_dir, 'classification')
    (work_dir / name).unlink()
    with pytest.raises(
        FinishedRunError, match=f'{name} is missing. Run first: python tools/train.py'
    ):
        tool.main([str(config)])
    assert not (work_dir / 'report').exists()


def test_unfinished_run_and_absent_teacher_are_refused(tmp_path):
    config = fake.write_run(tmp_path / 'run', 'classification', finished=False)
    with pytest.raises(FinishedRunError, match='--resume'):
        tool.main([str(config)])
    facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
    facts |= dict(finished=True, teacher_checkpoint='gone.pth')
    (tmp_path / 'run' / 'run.json').write_text(json.dumps(facts))
    with pytest.raises(FinishedRunError, match='gone.pth'):
        tool.main([str(config)])


def test_weights_of_another_network_are_refused(tmp_path, capsys):
    """mmengine's own loading would warn and test random weights."""
    work_dir = tmp_path / 'run'
    fake.write_run(work_dir, 'classification')
    state = torch.load(work_dir / 'student.pth', weights_only=True)['state_dict']
    state.pop('head.layers.head.bias')
    save_tensors(state, work_dir / 'student.pth', {})
    with pytest.raises(CheckpointMismatchError, match=r'head\.layers\.head\.bias'):
        test_network(work_dir / 'student_config.py', work_dir / 'student.pth', tmp_path / 'log')
    # The loggers made meanwhile do not write to the closed file.
    from mmengine.logging import print_log

    print_log('afterwards', 'current')
    assert 'closed file' not in capsys.readouterr().err


def test_an_evaluator_that_does_not_score_is_refused_at_once(tmp_path, capsys):
    """Without scores a figure would be 0, as of a network that detects nothing."""
    config = fake.write_run(tmp_path / 'run', 'detection', images=2)
    outfile = f'test_evaluator.outfile_prefix={tmp_path / "files"}'
    options = ['test_evaluator.format_only=True', outfile]
    with pytest.raises(ValueError, match='format_only=True'):
        tool.main([str(config), '--cfg-options', *options])
    with pytest.raises(KeyError, match='but none of'):
        tool.main([str(config), '--cfg-options', 'test_evaluator.metric=proposal'])
    assert capsys.readouterr().out.count('Testing the') == 2


def test_picked_metrics():
    coco = {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.75, 'coco/bbox_mAP_s': 0.1}
    wanted = ('bbox_mAP', 'bbox_mAP_50')
    assert pick_metrics(coco, wanted) == dict(bbox_mAP=0.5, bbox_mAP_50=0.75)
    assert pick_metrics({'pascal_voc/mAP': 0.5, 'pascal_voc/AP50': 0.6}, wanted) == dict(
        bbox_mAP=0.5, bbox_mAP_50=0.6
    )
    assert pick_metrics({'accuracy/top1': 91.5, 'accuracy/top5': 99.0}, ('accuracy',)) == dict(
        accuracy=91.5
    )
    assert pick_metrics({}, wanted) == dict(bbox_mAP=0.0, bbox_mAP_50=0.0)
    with pytest.raises(KeyError, match='recall'):
        pick_metrics({'coco/recall': 1.0}, wanted)


def test_retention_needs_a_teacher():
    assert retention(0.3, 0.4) == 0.75
    assert retention(0.3, 0.0) is None
    assert retention(float('nan'), 0.4) is None
    # Of which AP50 is known, and is enough.
    assert retention(0.15, 0.2, 0.3) == 0.75
    assert retention(0.15, 0.2, 0.299) is None
