import importlib.util
import json
import shutil

import cv2
import pytest
from fake_run import write_run
from mmengine.config import Config
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


@pytest.mark.parametrize('option', ['--min-iou', '--min-score'])
@pytest.mark.parametrize('value', ['30', '-0.1', 'nan'])
def test_shares_are_from_0_to_1(tool, run, option, value, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(run / 'student_config.py'), str(run / 'student.pth'), f'{option}={value}'])
    assert f'{option} is from 0 to 1, not {value}' in capsys.readouterr().err


def other_teacher(run, folder, change):
    """The run's teacher, tested on a set in another folder; the config's path."""
    shutil.copytree(run.parent / 'detection_set', folder / 'set')
    cfg = Config.fromfile(run / 'teacher_config.py')
    cfg.test_dataloader.dataset.data_root = str(folder / 'set')
    content = json.loads((folder / 'set' / 'val.json').read_text())
    cfg.test_evaluator.ann_file = str(folder / 'set' / 'val.json')
    change(cfg.test_dataloader.dataset, content)
    (folder / 'set' / 'val.json').write_text(json.dumps(content))
    cfg.dump(folder / 'teacher.py')
    return folder / 'teacher.py'


def swap_images(dataset, content):
    first, second = content['images']
    first['file_name'], second['file_name'] = second['file_name'], first['file_name']


def swap_classes(dataset, content):
    dataset.metainfo = dict(classes=('dog', 'cat'))
    content['categories'].reverse()


def drop_an_image(dataset, content):
    del content['images'][1], content['annotations'][1]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (swap_images, r"Image 0 of the teacher's test set is 1\.png, of the student's 0\.png"),
        (swap_classes, "Class 0 of the teacher's test set is dog, of the student's cat"),
        (drop_an_image, 'teacher is tested on 1 images, the student on 2'),
        (lambda dataset, content: None, None),
    ],
)
def test_both_are_tested_on_one_set(tool, run, tmp_path, capsys, change, message):
    config = other_teacher(run, tmp_path, change)
    arguments = [str(run / 'student_config.py'), str(run / 'student.pth')]
    arguments += ['--teacher-config', str(config), '--out', str(tmp_path / 'gallery.jpg')]
    if message is None:
        tool.main(arguments)
        assert 'objects' in capsys.readouterr().out
        return
    with pytest.raises(ValueError, match=message):
        tool.main(arguments)


def test_images_without_files_are_known_by_their_ids(tool):
    assert tool.image_names(dict(img_path='a/1.jpg', img_id=3), dict(img_id=4)) == [3, 4]
    assert tool.image_names(dict(img_path='a/1.jpg'), dict(img_path='b/1.jpg')) == ['1.jpg'] * 2
    assert tool.image_names(dict(img_path='a/1.jpg'), dict(img_id=4)) == [None, None]
