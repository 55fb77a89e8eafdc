"""The embedded digits sets: what is on the images, and how a set is written."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmdfkd.datasets import digits

ROOT = Path(__file__).resolve().parents[2]
SPEC = digits.DetectionSpec(seed=3, train=30, val=10)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text())


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two xywh boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


@pytest.fixture(scope='module')
def handwriting() -> digits.Handwriting:
    return digits.load_handwriting()


@pytest.fixture(scope='module')
def detection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.write_detection(tmp_path_factory.mktemp('detection') / 'set', SPEC, workers=2)


@pytest.fixture(scope='module')
def classification(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.write_classification(tmp_path_factory.mktemp('classification') / 'set', seed=3)


def test_split_divides_every_class_without_overlap(handwriting):
    parts = digits.split_sources(handwriting.labels, seed=0)
    assert not set(parts['train']) & set(parts['val'])
    assert sorted([*parts['train'], *parts['val']]) == list(range(1797))
    for label in range(10):
        held_out = (handwriting.labels[parts['val']] == label).sum()
        assert held_out == pytest.approx(0.2 * (handwriting.labels == label).sum(), abs=1)
    other = digits.split_sources(handwriting.labels, seed=1)
    assert not np.array_equal(parts['val'], other['val'])


def test_loading_raises_an_audit_event():
    code = (
        'import sys; seen = []; sys.addaudithook(lambda name, _: seen.append(name));'
        'from mmdfkd.datasets.digits import load_handwriting; before = list(seen);'
        'load_handwriting();'
        'assert "mmdfkd.load_digits" not in before and "mmdfkd.load_digits" in seen'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ImportError, match='pip install scikit-learn'):
        digits.load_handwriting()


def test_imports_nothing_of_the_project():
    tree = ast.parse(Path(digits.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split('.')[0])
    assert imported - sys.stdlib_module_names == {'cv2', 'numpy', 'sklearn'}


def test_same_seed_same_bytes_whatever_the_workers(detection, tmp_path):
    expected = contents(detection)
    assert len([name for name in expected if name.endswith('.png')]) == SPEC.train + SPEC.val
    for workers in (0, 1, 3):
        again = digits.write_detection(tmp_path / f'{workers}', SPEC, workers=workers)
        assert contents(again) == expected


def test_an_image_does_not_depend_on_the_number_of_images(detection, tmp_path):
    spec = digits.DetectionSpec(seed=SPEC.seed, train=5, val=5)
    few = contents(digits.write_detection(tmp_path / 'few', spec, workers=0))
    many = contents(detection)
    assert all(many[name] == data for name, data in few.items() if name.endswith('.png'))


def test_another_seed_gives_other_images(detection, tmp_path):
    spec = digits.DetectionSpec(seed=SPEC.seed + 1, train=5, val=5)
    other = contents(digits.write_detection(tmp_path / 'other', spec, workers=0))
    many = contents(detection)
    assert not any(many[name] == data for name, data in other.items() if name.endswith('.png'))


def test_train_and_val_share_no_handwritten_digit(detection, handwriting):
    used = {}
    for split in digits.SPLITS:
        found = annotations(detection, split)['annotations']
        used[split] = {a['source_index'] for a in found}
        for a in found:
            assert handwriting.labels[a['source_index']] == a['category_id'] - 1
    assert not used['train'] & used['val']
    parts = digits.split_sources(handwriting.labels, SPEC.seed)
    assert used['val'] <= set(parts['val'])


@pytest.mark.parametrize('split', digits.SPLITS)
def test_boxes_keep_their_promises(detection, split):
    coco = annotations(detection, split)
    assert coco['info']['seed'] == SPEC.seed
    assert [c['name'] for c in coco['categories']] == list('0123456789')
    assert [c['id'] for c in coco['categories']] == list(range(1, 11))
    per_image = {image['id']: [] for image in coco['images']}
    for a in coco['annotations']:
        per_image[a['image_id']].append(np.array(a['bbox']))
        assert a['area'] == a['bbox'][2] * a['bbox'][3] and a['iscrowd'] == 0
    assert min(per_image) == 1 and len(per_image) == getattr(SPEC, split)
    for boxes in per_image.values():
        assert 2 <= len(boxes) <= 8
        for i, box in enumerate(boxes):
            assert (box[:2] >= 0).all() and (box[:2] + box[2:] <= 128).all()
            assert 14 <= box[2:].max() <= 56
            assert all(overlap(box, other) <= 0.1 for other in boxes[:i])


def test_sizes_and_classes_are_spread(handwriting):
    sources = digits.split_sources(handwriting.labels, 0)['train']
    drawn = []
    for index in range(150):
        drawn += digits.draw_image(np.random.default_rng(index), handwriting, sources, 128)[1]
    counts = np.bincount([d['label'] for d in drawn], minlength=10)
    # About 75 expected of each; five standard deviations of a fair draw.
    assert np.abs(counts - len(drawn) / 10).max() < 5 * np.sqrt(0.09 * len(drawn))
    longest = np.array([max(d['bbox'][2:]) for d in drawn])
    assert longest.min() < 18 and longest.max() > 52


def test_boxes_are_tight(handwriting, monkeypatch):
    """The pixels that a digit changes reach all four sides of its box and stay within it."""
    sources = digits.split_sources(handwriting.labels, 0)['train']
    painted = []
    paint = digits._paint

    def watch(rng, canvas, glyph, x, y, polarity):
        before = canvas.copy()
        paint(rng, canvas, glyph, x, y, polarity)
        painted.append(np.abs(canvas - before).max(-1))

    monkeypatch.setattr(digits, '_paint', watch)
    for index in range(20):
        painted.clear()
        rng = np.random.default_rng(index)
        _, found = digits.draw_image(rng, handwriting, sources, 128)
        assert len(painted) == len(found)
        for change, digit in zip(painted, found, strict=True):
            rows, columns = np.nonzero(change > 0)
            x, y, width, height = digit['bbox']
            left, top = columns.min(), rows.min()
            right, bottom = columns.max() + 1, rows.max() + 1
            # Partly covered border pixels: the box ends inside the outermost changed ones.
            assert left <= x < left + 1 and top <= y < top + 1
            assert right - 1 < x + width <= right and bottom - 1 < y + height <= bottom


def test_digits_stand_out(handwriting, monkeypatch):
    """A digit differs in luminance from nearly all of what it is painted on."""
    sources = digits.split_sources(handwriting.labels, 0)['train']
    luma = np.array([0.299, 0.587, 0.114])
    contrasts = []
    paint = digits._paint

    def watch(rng, canvas, glyph, x, y, polarity):
        before = canvas.copy()
        paint(rng, canvas, glyph, x, y, polarity)
        change = np.abs((canvas - before) @ luma)
        contrasts.append(np.quantile(change[change > 0], 0.5))

    monkeypatch.setattr(digits, '_paint', watch)
    for index in range(30):
        digits.draw_image(np.random.default_rng(index), handwriting, sources, 128)
    assert min(contrasts) > 0.1 and np.median(contrasts) > 0.25
    assert np.ptp(contrasts) > 0.3


def test_canvases_are_textured():
    canvases = [digits._canvas(np.random.default_rng(i), 128) for i in range(30)]
    assert all(c.std((0, 1)).max() > 0.003 for c in canvases)
    means = np.array([c.mean((0, 1)) for c in canvases])
    assert means.std(0).min() > 0.1


def test_small_canvas_still_holds_two(handwriting):
    for index in range(20):
        rng = np.random.default_rng(index)
        image, found = digits.draw_image(rng, handwriting, np.arange(1797), 64)
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and len(found) >= 2


def test_mmdet_reads_the_set(detection):
    from mmdet.datasets import CocoDataset

    dataset = CocoDataset(
        data_root=str(detection),
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=digits.CLASSES),
        pipeline=[],
    )
    assert len(dataset) == SPEC.val
    found = annotations(detection, 'val')['annotations']
    labels = [i['bbox_label'] for k in range(SPEC.val) for i in dataset[k]['instances']]
    assert labels == [a['category_id'] - 1 for a in found]
    assert Path(dataset[0]['img_path']).is_file()


def test_classification_holds_every_digit_once(classification, handwriting):
    parts = digits.split_sources(handwriting.labels, 3)
    for split in digits.SPLITS:
        files = sorted((classification / split).rglob('*.png'), key=lambda p: p.stem)
        assert [int(p.stem) for p in files] == list(parts[split])
        assert [int(p.parent.name) for p in files] == list(handwriting.labels[parts[split]])
    image = cv2.imread(str(files[0]))
    assert image.shape == (32, 32, 3)
    # Enlarging keeps the digit: averaged back to 8x8 it is the source again, but for overshoot.
    back = cv2.resize(image[..., 0], (8, 8), interpolation=cv2.INTER_AREA) / 255
    assert np.abs(back - handwriting.images[int(files[0].stem)]).mean() < 0.05


def test_up_to_date_set_is_kept_and_a_damaged_one_is_not(tmp_path):
    spec = digits.DetectionSpec(train=2, val=1)
    lines = []

    def write(**options):
        lines.clear()
        return digits.write_detection(tmp_path / 'set', spec, 0, report=lines.append, **options)

    root = write()
    assert not [p for p in tmp_path.iterdir() if p != root]
    image = root / 'val' / '000001.png'
    original, first = image.read_bytes(), image.stat().st_mtime_ns
    write()
    assert 'up to date' in lines[-1] and image.stat().st_mtime_ns == first
    write(overwrite=True)
    assert 'written' in lines[-1] and image.stat().st_mtime_ns != first
    image.write_bytes(b'broken')
    write()
    assert any('damaged' in line for line in lines) and image.read_bytes() == original
    spec = digits.DetectionSpec(seed=1, train=2, val=1)
    write()
    assert any('other settings' in line for line in lines) and image.read_bytes() != original


def test_foreign_files_are_left_alone(tmp_path):
    spec = digits.DetectionSpec(train=1, val=1)
    foreign = tmp_path / 'foreign'
    foreign.mkdir()
    (foreign / 'thesis.txt').write_text('years of work')
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='not a set written by this converter'):
            digits.write_detection(foreign, spec, 0, overwrite)
    root = digits.write_detection(tmp_path / 'set', spec, 0)
    (root / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='also holds notes'):
        digits.write_detection(root, spec, 0, overwrite=True)
    assert (root / 'notes.txt').exists() and (foreign / 'thesis.txt').exists()


def test_a_failed_run_leaves_what_was_there(tmp_path):
    root = digits.write_detection(tmp_path / 'set', digits.DetectionSpec(train=1, val=1), 0)
    before = contents(root)

    def fail(folder: Path) -> None:
        (folder / 'half.png').write_bytes(b'')
        raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        digits.write_set(root, dict(set='other'), fail)
    assert contents(root) == before and list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize('options', [dict(seed=-1), dict(train=0), dict(val=0), dict(size=63)])
def test_bad_specs_are_refused(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        digits.DetectionSpec(**options)


@pytest.mark.parametrize(
    ('tool', 'options'),
    [('detection', ['--train-images', '3', '--val-images', '2']), ('classification', [])],
)
def test_tools_run_from_anywhere_and_twice(tmp_path, tool, options):
    script = ROOT / 'tools' / 'dataset_converters' / f'digits_{tool}.py'
    command = [sys.executable, str(script), '--out', 'made/here', *options]
    for expected in ('written in', 'up to date'):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout.splitlines()[-1]
    assert (tmp_path / 'made' / 'here' / digits.STAMP).is_file()
    done = subprocess.run([*command, '--size', '3'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith('error: ')
    assert 'Traceback' not in done.stderr
