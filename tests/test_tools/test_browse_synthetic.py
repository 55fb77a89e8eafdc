"""The browser draws sets and sources."""

import importlib.util
import json

import cv2
import numpy as np
import pytest
from source_runs import NAMES, REFINED, classifier_run
from tiny_runs import ROOT

from mmdfkd.visualization import attention_overlay, folder_grid


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'analysis_tools' / 'browse_synthetic.py'
    spec = importlib.util.spec_from_file_location('browse_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((20, 20, 3), value, np.uint8))


def _values(grid):
    """Grey levels of large even areas: the images in a grid."""
    levels, counts = np.unique(grid.reshape(-1, 3)[:, 0], return_counts=True)
    return set(levels[counts > 1000].tolist())


def test_a_plain_folder(tool, tmp_path, capsys):
    for i in range(6):
        _image(tmp_path / 'set' / 'part' / f'{i}.png', 20 + 30 * i)
    tool.main([str(tmp_path / 'set'), '--out', str(tmp_path / 'new' / 'grid.png'), '--num', '3'])
    assert '3 of 6 images' in capsys.readouterr().out
    grid = cv2.imread(str(tmp_path / 'new' / 'grid.png'))
    # Evenly over the set, on white.
    assert _values(grid) == {50, 110, 170, 255}


def test_a_set_with_classes(tmp_path):
    _image(tmp_path / 'bee' / '000000.png', 90)
    answer = dict(labels=[1, 0], probabilities=[0.75, 0.2])
    content = dict(classes=NAMES, images={'bee/000000.png': answer})
    (tmp_path / 'labels.json').write_text(json.dumps(content))
    grid, shown, there = folder_grid(tmp_path)
    (tmp_path / 'labels.json').unlink()
    bare = folder_grid(tmp_path)[0]
    # The caption is below the image.
    assert (shown, there) == (1, 1) and grid.shape[0] > bare.shape[0]
    assert _values(grid) == {90, 255}


def test_a_set_with_boxes(tmp_path):
    _image(tmp_path / 'images' / 'a.png', 120)
    _image(tmp_path / 'images' / 'b.png', 160)
    box = dict(id=1, image_id=7, category_id=4, bbox=[4, 4, 10, 8], area=80, score=0.9)
    content = dict(
        images=[dict(id=7, file_name='a.png'), dict(id=8, file_name='b.png')],
        annotations=[box],
        categories=[dict(id=4, name='bee')],
    )
    (tmp_path / 'annotations').mkdir()
    path = tmp_path / 'annotations' / 'instances.json'
    path.write_text(json.dumps(content))
    grid, shown, there = folder_grid(tmp_path, width=400)
    assert (shown, there) == (2, 2) and _values(grid) >= {120, 160, 255}
    path.write_text(json.dumps(content | dict(annotations=[])))
    bare = folder_grid(tmp_path, width=400)[0]
    drawn = (grid != bare).any(2)
    # A frame and a tag on the first image alone.
    assert drawn[:, : grid.shape[1] // 2].any() and not drawn[:, grid.shape[1] // 2 :].any()


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no image'):
        folder_grid(tmp_path)


def test_a_config(tool, tmp_path, capsys):
    """Of a source that learns, later steps show other images than the first ones."""
    config = str(classifier_run(tmp_path, REFINED))
    pictures = []
    for name, more in (('first', []), ('plain', ['--no-attention']), ('later', ['--step', '4'])):
        out = tmp_path / f'{name}.png'
        tool.main([config, '--out', str(out), '--num', '4', '--width', '400', *more])
        pictures.append(cv2.imread(str(out)))
    assert '4 images in' in capsys.readouterr().out
    first, plain, later = pictures
    assert first.shape[:2] != plain.shape[:2]
    assert first.std() > 20 and first.shape == later.shape and (first != later).any()


def test_attention_is_red_where_it_is():
    attention = np.zeros((4, 4))
    attention[0, 3] = 2
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    drawn = attention_overlay(image, attention, 128).astype(int)
    red = drawn[..., 0] - drawn[..., 2]
    assert red[:16, 112:].min() > 100 and np.abs(red[64:]).max() <= 1


def test_names_of_pictures(tool, tmp_path):
    with pytest.raises(SystemExit):
        tool.parse_args([str(tmp_path), '--out', 'grid.gif'])
