"""The tool on a finished run of tiny networks."""

import importlib.util
import json
import shutil

import pytest
import torch
from fake_run import SIZE, write_run
from tiny_runs import ROOT


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished run, and random scenes beside it."""
    folder = tmp_path_factory.mktemp('agreement') / 'run'
    config = write_run(folder, 'detection', images=1)
    images = torch.randint(
        0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    torch.save(dict(images=images), folder / 'scenes.pth')
    return config, folder


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'analysis_tools' / 'agreement.py'
    spec = importlib.util.spec_from_file_location('agreement_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(capsys) -> list[dict]:
    """What the tool said, a line a student."""
    said = capsys.readouterr().out.splitlines()
    return [json.loads(line) for line in said if line.startswith('{')]


def test_the_tool_measures_students_on_the_scenes_of_the_run(tool, run, capsys):
    config, folder = run
    start, end = (str(folder / name) for name in ('student_start.pth', 'student.pth'))
    tool.main([str(config), '--students', start, end])
    first, second = lines(capsys)
    assert (first.pop('student'), second.pop('student')) == (start, end)
    # The same objects; other random weights find others of them.
    assert first['images'] == second['images'] == 3
    assert first['objects'] == second['objects'] > 0
    assert 0 <= first['bbox_mAP'] < 1 and first['bbox_mAP'] != second['bbox_mAP']


def test_the_teacher_agrees_with_itself(tool, run, tmp_path, capsys):
    folder = tmp_path / 'run'
    shutil.copytree(run[1], folder)
    shutil.copy(folder / 'teacher.pth', folder / 'student.pth')
    shutil.copy(folder / 'teacher_config.py', folder / 'student_config.py')
    tool.main([str(run[0]), '--work-dir', str(folder)])
    (found,) = lines(capsys)
    assert found['bbox_mAP'] == 1


def test_a_classifier_is_measured_on_inverted_images(tool, tmp_path, capsys):
    folder = tmp_path / 'run'
    config = write_run(folder, 'classification', images=1)
    shutil.copy(folder / 'teacher.pth', folder / 'student.pth')
    shutil.copy(folder / 'teacher_config.py', folder / 'student_config.py')
    images = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8)
    torch.save(dict(images=images), folder / 'scenes.pth')
    tool.main([str(config), '--work-dir', str(folder)])
    (found,) = lines(capsys)
    assert (found['images'], found['top1'], found['divergence']) == (4, 1.0, 0.0)


def test_a_classifier_is_measured_on_textures(tool, tmp_path, capsys):
    folder = tmp_path / 'run'
    config = write_run(folder, 'classification', images=1)
    with config.open('a') as stream:
        stream.write(f'train_dataloader = dict(dataset=dict(image_size={SIZE}))\n')
    tool.main([str(config), '--work-dir', str(folder), '--textures', '--images', '6'])
    (found,) = lines(capsys)
    assert found['images'] == 6 and 0 <= found['top1'] <= 1 and found['divergence'] > 0
    images = torch.load(folder / 'textures.pth')['state_dict']['images']
    # Textures, no flat ground.
    assert images.shape == (6, 3, SIZE, SIZE) and images.float().std((1, 2, 3)).median() > 8
    # The file is kept: other students are measured on the same ones, and on no others.
    tool.main([str(config), '--work-dir', str(folder), '--textures', '--images', '6'])
    assert lines(capsys) == [found]
    with pytest.raises(ValueError, match="made with {'images': 6}, and {'images': 9} are asked"):
        tool.main([str(config), '--work-dir', str(folder), '--textures', '--images', '9'])
    # Of the size that the run was trained at.
    call = [str(config), '--work-dir', str(folder), '--textures', '--images', '6']
    option = f'train_dataloader.dataset.image_size={SIZE // 2}'
    with pytest.raises(ValueError, match=rf'those of the run of \({SIZE // 2}, {SIZE // 2}\)'):
        tool.main([*call, '--cfg-options', option])
    # Another run in the same folder has another teacher; named, its images are taken.
    weights = torch.load(folder / 'teacher.pth', weights_only=True)
    weights['state_dict']['head.layers.head.bias'] += 1
    torch.save(weights, folder / 'teacher.pth')
    with pytest.raises(ValueError, match="made with {'teacher': '[0-9a-f]{16}'}"):
        tool.main(call)
    tool.main([*call, '--scenes', str(folder / 'textures.pth')])
    assert lines(capsys)[0]['images'] == 6


def test_a_detector_has_no_use_for_textures(tool, run, tmp_path):
    with pytest.raises(ValueError, match='leave the option out for scenes'):
        tool.main([str(run[0]), '--textures', '--scenes', str(tmp_path / 'none.pth')])
