"""Tiles show every pixel, and their boxes lie where the objects are."""

import importlib.util
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from tiny_runs import ROOT

TOOL = ROOT / 'tools' / 'dataset_converters' / 'tile_coco.py'


def module():
    spec = importlib.util.spec_from_file_location('tile_coco', TOOL)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize('length', [30, 64, 65, 100, 257])
def test_tiles_cover_a_side(length):
    starts = module().starts(length, 64, 16)
    assert starts[0] == 0 and starts == sorted(set(starts))
    if length > 64:
        assert starts[-1] == length - 64
        assert all(b - a <= 64 - 16 for a, b in zip(starts, starts[1:], strict=False))


def write(folder, boxes):
    (folder / 'images').mkdir(parents=True)
    (folder / 'annotations').mkdir()
    image = np.zeros((80, 120, 3), np.uint8)
    for i, (x, y, w, h) in enumerate(boxes):
        image[y : y + h, x : x + w] = 50 * (i + 1)
    cv2.imwrite(str(folder / 'images' / 'one.png'), image)
    content = dict(
        images=[dict(id=7, file_name='one.png', width=120, height=80)],
        annotations=[
            dict(id=i, image_id=7, category_id=i + 3, bbox=list(box), area=box[2] * box[3])
            for i, box in enumerate(boxes)
        ],
        categories=[dict(id=3, name='a'), dict(id=4, name='b')],
    )
    (folder / 'annotations' / 'instances_val.json').write_text(json.dumps(content))


def run(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize('merge', [True, False])
def test_boxes_are_where_the_objects_are(tmp_path, merge):
    write(tmp_path / 'set', [(10, 12, 20, 16), (60, 40, 30, 30)])
    options = ['--merge', 'thing'] if merge else []
    done = run(
        tmp_path / 'set',
        tmp_path / 'out',
        '--splits',
        'val',
        '--size',
        64,
        '--overlap',
        16,
        *options,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / 'out' / 'annotations' / 'instances_val.json').read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    assert list(names.values()) == (['thing'] if merge else ['a', 'b'])
    images = {i['id']: i for i in content['images']}
    assert len(images) == 3 * 2
    whole = 0
    for one in content['annotations']:
        tile = cv2.imread(str(tmp_path / 'out' / 'images' / images[one['image_id']]['file_name']))
        assert tile.shape == (64, 64, 3) and one['category_id'] in names
        x, y, w, h = (round(v) for v in one['bbox'])
        colour = set(tile[y : y + h, x : x + w, 0].flatten().tolist())
        assert colour in ({50}, {100}) and w > 0 and h > 0
        # The pixels around it are not the object's.
        assert (tile[..., 0] == colour.pop()).sum() == w * h == one['area']
        size = 320 if tile[y, x, 0] == 50 else 900
        assert one['iscrowd'] == int(w * h < 0.4 * size)
        whole += w * h == size
    assert whole >= 2
    assert f'{sum(not a["iscrowd"] for a in content["annotations"])} boxes' in done.stdout


def test_bad_input_is_one_line(tmp_path):
    for options in (['--overlap', 400], ['--least', 2], []):
        done = run(tmp_path / 'none', tmp_path / 'out', *options)
        assert done.returncode == 1 and done.stderr.startswith('error: ')
        assert len(done.stderr.splitlines()) == 1
