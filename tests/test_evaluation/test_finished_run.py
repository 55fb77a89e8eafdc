import json

import pytest

from mmdfkd.evaluation import FinishedRun, FinishedRunError, read_curves

FILES = ('student.pth', 'student_config.py', 'teacher_config.py')


def _run(folder, **facts) -> FinishedRun:
    for name in FILES:
        (folder / name).touch()
    (folder / 'run.json').write_text(json.dumps(facts))
    return FinishedRun(folder, 'configs/some.py')


def test_complete_run_is_read(tmp_path):
    assert _run(tmp_path, seed=1, finished=True).read() == dict(seed=1, finished=True)


def test_empty_directory_names_every_file_and_the_command(tmp_path):
    with pytest.raises(FinishedRunError) as error:
        FinishedRun(tmp_path, 'configs/some.py').read()
    assert all(name in str(error.value) for name in (*FILES, 'run.json'))
    assert 'python tools/train.py configs/some.py' in str(error.value)


def test_broken_and_unfinished_runs(tmp_path):
    run = _run(tmp_path, finished=False)
    with pytest.raises(FinishedRunError, match='--resume'):
        run.read()
    run.facts_file.write_text('{"seed": ')
    with pytest.raises(FinishedRunError, match='no valid JSON'):
        run.read()


def test_teacher_checkpoint(tmp_path):
    run = _run(tmp_path)
    (tmp_path / 'teacher.pth').touch()
    absolute = str(tmp_path / 'teacher.pth')
    assert run.teacher_checkpoint(dict(teacher_checkpoint='teacher.pth')) == absolute
    assert run.teacher_checkpoint(dict(teacher_checkpoint=absolute)) == absolute
    url = 'https://example.org/teacher.pth'
    assert run.teacher_checkpoint(dict(teacher_checkpoint=url)) == url
    with pytest.raises(FinishedRunError, match='absent.pth'):
        run.teacher_checkpoint(dict(teacher_checkpoint='absent.pth'))
    with pytest.raises(FinishedRunError, match='names no'):
        run.teacher_checkpoint({})
    with pytest.raises(FinishedRunError, match='stored labels, labels.pth, without its teacher'):
        run.teacher_checkpoint(dict(teacher_labels='labels.pth'))


def _log(folder, stamp, records, end=''):
    path = folder / stamp / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(r) + '\n' for r in records) + end)


def test_curves_of_a_resumed_run(tmp_path):
    """What the interrupted run did after the checkpoint is replaced; validation is no loss."""
    first = [dict(iter=i, loss=1.0) for i in (10, 20, 30)]
    _log(tmp_path, '20260101_000000', first, end='{"iter": 40, "lo')
    second = [dict(iter=i, loss=2.0) for i in (20, 30, 40)]
    _log(tmp_path, '20260102_000000', [{'coco/bbox_mAP': 0.1, 'step': 20}, *second])
    curves = [(r['iter'], r['loss']) for r in read_curves(tmp_path)]
    assert curves == [(10, 1.0), (20, 2.0), (30, 2.0), (40, 2.0)]


def test_curves_of_a_run_that_started_over(tmp_path):
    _log(tmp_path, '20260101_000000', [dict(iter=i, loss=1.0) for i in (10, 20, 30)])
    _log(tmp_path, '20260102_000000', [dict(iter=10, loss=2.0)])
    assert read_curves(tmp_path) == [dict(iter=10, loss=2.0)]
    assert read_curves(tmp_path / 'nothing') == []
