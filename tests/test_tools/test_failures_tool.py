import importlib.util
import shutil

import cv2
import pytest
from fake_run import write_run
from tiny_runs import ROOT


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'analysis_tools' / 'failures.py'
    spec = importlib.util.spec_from_file_location('failures_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('failures') / 'run'
    write_run(folder, 'detection', images=2)
    return folder


def test_table_and_picture(tool, run, tmp_path, capsys):
    """A random teacher finds something at such bounds; its random student something else."""
    picture = tmp_path / 'pictures' / 'gallery.jpg'
    options = ('--min-iou', '0.05', '--min-score', '0', '--out', str(picture))
    tool.main([str(run / 'student_config.py'), str(run / 'student.pth'), *options])
    text = capsys.readouterr().out
    table = [line.split() for line in text.splitlines()]
    assert ['objects', 'teacher', 'student', 'missed', 'gained'] in table
    (total,) = (row for row in table if row and row[0] == 'all')
    assert total[1] == '2'
    assert picture.is_file() == (int(total[4]) > 0)
    assert not picture.is_file() or cv2.imread(str(picture)).shape[1] > 900
    # Nothing but the picture.
    assert not (run / 'failures.jpg').exists()


def test_the_teacher_as_its_own_student_misses_nothing(tool, run, tmp_path, capsys):
    folder = tmp_path / 'run'
    shutil.copytree(run, folder)
    shutil.copy(folder / 'teacher.pth', folder / 'student.pth')
    options = ('--min-iou', '0.05', '--min-score', '0')
    tool.main([str(folder / 'teacher_config.py'), str(folder / 'student.pth'), *options])
    assert 'misses nothing' in capsys.readouterr().out
    assert not (folder / 'failures.jpg').exists()


def test_bad_input(tool, run, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        tool.main([str(run / 'student_config.py'), str(tmp_path / 'nowhere.pth')])
    alone = tmp_path / 'student.pth'
    shutil.copy(run / 'student.pth', alone)
    with pytest.raises(FileNotFoundError, match=r'student_config\.py'):
        tool.main([str(ROOT / 'configs' / 'dfkd_vitdet.py'), str(alone)])
    with pytest.raises(FileNotFoundError, match=r'run\.json'):
        tool.main([str(run / 'student_config.py'), str(alone)])
    with pytest.raises(SystemExit):
        tool.main([str(run / 'student_config.py'), str(alone), '--out', 'picture.gif'])
