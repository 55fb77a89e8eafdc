"""Two runs never mix in one directory, and nothing that is needed is deleted."""

import json
import re
import threading

import pytest

from mmdfkd.utils import run_files
from mmdfkd.utils.run_files import (
    clear_run,
    named_files,
    project_commit,
    refuse_foreign_checkpoints,
    write_json,
)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / 'run'
    (folder / 'report').mkdir(parents=True)
    (folder / 'report' / 'index.html').write_text('x')
    (folder / 'synthetic').mkdir()
    (folder / 'synthetic' / 'segment-0').write_text('x')
    (folder / 'vis_data').mkdir()
    for name in ('iter_3.pth', 'student.pth', 'student_config.py', 'run.json', 'last_checkpoint'):
        (folder / name).write_text('x')
    (folder / 'notes.md').write_text('mine')
    return folder


def test_checkpoints_of_another_run_are_refused_with_the_ways_out(run):
    with pytest.raises(RuntimeError, match=r'iter_3\.pth.*--resume.*--overwrite.*--work-dir'):
        refuse_foreign_checkpoints(run)
    assert (run / 'iter_3.pth').exists()


def test_an_empty_or_missing_directory_is_fine(tmp_path):
    refuse_foreign_checkpoints(tmp_path)
    refuse_foreign_checkpoints(tmp_path / 'missing')
    clear_run(tmp_path / 'missing')
    assert not (tmp_path / 'missing').exists()


def test_clearing_deletes_what_a_run_leaves_and_nothing_else(run):
    clear_run(run)
    assert sorted(p.name for p in run.iterdir()) == ['notes.md', 'synthetic', 'vis_data']
    assert list((run / 'synthetic').iterdir())
    refuse_foreign_checkpoints(run)


OWN = ('iter_20.pth', 'epoch_3.pth', 'best_coco_bbox_mAP_iter_20.pth', 'student.pth')


@pytest.mark.parametrize('name', [*OWN, 'student_start.pth', 'synthetic_samples.pth'])
def test_a_users_file_is_no_checkpoint_of_a_run(tmp_path, name):
    names = ('labels.pth', 'teacher.pth', 'iter_20_copy.pth', 'best_teacher.pth', 'my_iter_20.pth')
    mine = [tmp_path / other for other in names]
    for path in mine:
        path.write_text('mine')
    refuse_foreign_checkpoints(tmp_path)
    (tmp_path / name).write_text('x')
    with pytest.raises(RuntimeError, match=re.escape(f'({name})')):
        refuse_foreign_checkpoints(tmp_path)
    clear_run(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(mine)


def test_checkpoints_under_another_template(tmp_path):
    (tmp_path / 'ckpt_7.pth').write_text('x')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'ckpt_7.pth'))
    with pytest.raises(RuntimeError, match='ckpt_7'):
        refuse_foreign_checkpoints(tmp_path)
    clear_run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_clearing_deletes_the_curves_of_earlier_runs_alone(run):
    logs = [run / name / 'vis_data' / 'scalars.json' for name in ('1st', '2nd')]
    for log in logs:
        log.parent.mkdir(parents=True)
        log.write_text('{}')
        (log.parents[1] / 'run.log').write_text('x')
    clear_run(run, current='2nd')
    assert not logs[0].exists() and logs[1].exists()
    assert (run / '1st' / 'run.log').exists()


def test_clearing_spares_everything_if_one_file_is_needed(run):
    before = sorted(run.rglob('*'))
    with pytest.raises(RuntimeError, match=r'would delete .*iter_3\.pth'):
        clear_run(run, [run / '..' / 'run' / 'iter_3.pth'])
    assert sorted(run.rglob('*')) == before


def test_files_named_in_a_config(run):
    path = str(run / 'student.pth')
    cfg = dict(a=[dict(b=path), ('x', 3)], c=str(run / 'nowhere.pth'), d=None, e='x' * 5000)
    assert named_files(cfg) == {path}
    assert named_files([cfg, None]) == {path}


def test_json_is_never_half_written(tmp_path):
    path = tmp_path / 'run.json'
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            if path.exists():
                seen.append(json.loads(path.read_text())['n'])

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(100):
        write_json(path, dict(n=n, filler='x' * 20000))
    stop.set()
    reader.join()
    assert seen == sorted(seen)
    assert json.loads(path.read_text())['n'] == 99
    assert [p.name for p in tmp_path.iterdir()] == ['run.json']


def test_commit_of_a_checkout(monkeypatch, tmp_path):
    assert re.fullmatch(r'[0-9a-f]{7,}\+?|unknown', project_commit())
    monkeypatch.setattr(run_files, '__file__', str(tmp_path / 'a' / 'b' / 'c.py'))
    assert project_commit() == 'unknown'
