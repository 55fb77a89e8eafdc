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


SMALL = ('--splits', 'val', '--size', 64, '--overlap', 16)


def annotations(folder, split='val'):
    return folder / 'annotations' / f'instances_{split}.json'


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_set_that_is_there_is_kept(tmp_path):
    write(tmp_path / 'set', [(10, 12, 20, 16)])
    assert run(tmp_path / 'set', tmp_path / 'out', *SMALL).returncode == 0
    before = files(tmp_path)
    done = run(tmp_path / 'set', tmp_path / 'out', *SMALL, '--merge', 'thing')
    assert done.returncode == 1 and 'give --overwrite' in done.stderr
    assert len(done.stderr.splitlines()) == 1 and 'instances_val.json' in done.stderr
    assert files(tmp_path) == before
    done = run(tmp_path / 'set', tmp_path / 'out', *SMALL, '--merge', 'thing', '--overwrite')
    assert done.returncode == 0, done.stderr
    made = json.loads(annotations(tmp_path / 'out').read_text())
    assert made['categories'] == [dict(id=1, name='thing')]


def test_the_source_is_never_written_to(tmp_path):
    write(tmp_path / 'set', [(10, 12, 20, 16)])
    (tmp_path / 'link').symlink_to(tmp_path / 'set')
    before = files(tmp_path / 'set')
    for out in ('set', 'set/images/..', 'link'):
        done = run(tmp_path / 'set', tmp_path / out, *SMALL, '--overwrite')
        assert done.returncode == 1 and 'is the set that is cut' in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert files(tmp_path / 'set') == before


def test_no_annotations_name_tiles_that_were_not_written(tmp_path):
    """The third tile cannot be: a folder has its name."""
    write(tmp_path / 'set', [(10, 12, 20, 16)])
    blocked = tmp_path / 'out' / 'images' / 'one_56_0.png'
    blocked.mkdir(parents=True)
    done = run(tmp_path / 'set', tmp_path / 'out', *SMALL)
    assert done.returncode == 1 and f'error: {blocked} cannot be written' in done.stderr
    assert not any((tmp_path / 'out' / 'annotations').iterdir())
    assert not list((tmp_path / 'out').rglob('*.tmp'))
    # Those of another size, whose tiles have in part been replaced, are of no use either.
    annotations(tmp_path / 'out').write_text('{}')
    done = run(tmp_path / 'set', tmp_path / 'out', *SMALL, '--overwrite')
    assert done.returncode == 1 and not any((tmp_path / 'out' / 'annotations').iterdir())
    # What cannot be read replaces nothing.
    annotations(tmp_path / 'out').write_text('{}')
    annotations(tmp_path / 'set').write_text('{')
    done = run(tmp_path / 'set', tmp_path / 'out', *SMALL, '--overwrite')
    assert done.returncode == 1 and 'is no JSON' in done.stderr
    assert annotations(tmp_path / 'out').read_text() == '{}'


def test_images_with_one_name(tmp_path):
    """Each keeps its tiles, whichever splits are asked for; names that are alone stay."""
    names = dict(
        train=['a/b.png', 'c.png', 'c_2.png', 'd/e.png'], val=['a_b.png', 'c.jpg', 'd/e.png']
    )
    source, colour = tmp_path / 'set', {}
    (source / 'annotations').mkdir(parents=True)
    for split, own in names.items():
        for name in own:
            colour.setdefault(name, 30 * len(colour) + 20)
            path = source / 'images' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), np.full((40, 40, 3), colour[name], np.uint8))
        content = dict(
            images=[dict(id=i, file_name=name, width=40, height=40) for i, name in enumerate(own)],
            annotations=[
                # Its width tells which image a box is of.
                dict(id=i, image_id=i, category_id=1, bbox=[0, 0, colour[name] / 10, 5], area=9)
                for i, name in enumerate(own)
            ],
            categories=[dict(id=1, name='a')],
        )
        annotations(source, split).write_text(json.dumps(content))
    for out, calls in (('both', (('train', 'val'),)), ('each', (('val',), ('train',)))):
        for splits in calls:
            done = run(source, tmp_path / out, '--splits', *splits, '--size', 64, '--overlap', 16)
            assert done.returncode == 0, done.stderr
        tiles = {}
        for split, own in names.items():
            made = json.loads(annotations(tmp_path / out, split).read_text())
            for name, image, box in zip(own, made['images'], made['annotations'], strict=True):
                tiles[name] = image['file_name'].removesuffix('_0_0.png')
                tile = cv2.imread(str(tmp_path / out / 'images' / image['file_name']))
                assert abs(int(tile[5, 5, 0]) - colour[name]) <= 2
                assert box['image_id'] == image['id'] and box['bbox'][2] == colour[name] / 10
        assert tiles == {
            'a/b.png': 'a_b',
            'a_b.png': 'a_b_2',
            'c.png': 'c',
            'c_2.png': 'c_2',
            'c.jpg': 'c_3',
            'd/e.png': 'd_e',
        }
