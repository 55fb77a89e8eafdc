"""The measures of inverted scenes, on boxes, crops and networks made by hand."""

import importlib.util

import cv2
import numpy as np
import pytest
import torch
from tiny_runs import ROOT

from mmdfkd.evaluation import Annotation


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'benchmarks' / 'inversion.py'
    spec = importlib.util.spec_from_file_location('inversion_benchmark', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layout(*rows: tuple) -> Annotation:
    """Objects as ``(label, x1, y1, x2, y2)``."""
    rows = np.array(rows, float).reshape(-1, 5)
    return Annotation(rows[:, 0].astype(int), boxes=rows[:, 1:])


def seen(*rows: tuple) -> Annotation:
    """Detections as ``(label, score, x1, y1, x2, y2)``."""
    rows = np.array(rows, float).reshape(-1, 6)
    return Annotation(rows[:, 0].astype(int), rows[:, 1], rows[:, 2:])


class UpperOrLower:
    """Says 1 where the upper half is brighter, 0 where the lower one; surer, the brighter it is."""

    def encode(self, images):
        return images

    def class_votes(self, images):
        half = images.shape[-2] // 2
        halves = [images[:, :, half:], images[:, :, :half]]
        return torch.stack([part.mean((1, 2, 3)) for part in halves], 1)


def test_found_share(tool):
    """One found, one of another class, one too unsure, one overlapped by a third: 1 of 4."""
    layouts = [
        layout((0, 0, 0, 10, 10), (1, 20, 20, 30, 30)),
        layout((2, 0, 0, 10, 10), (2, 40, 40, 50, 50)),
        layout(),
    ]
    answers = [
        seen((0, 0.9, 0, 0, 10, 9), (0, 0.9, 20, 20, 30, 30)),
        seen((2, 0.29, 0, 0, 10, 10), (2, 0.9, 45, 40, 55, 50)),
        seen((1, 0.9, 0, 0, 10, 10)),
    ]
    assert tool.found_share(layouts, answers) == 0.25
    assert tool.found_share(layouts, [seen()] * 3) == 0
    with pytest.raises(ValueError, match='no object in 1 image'):
        tool.found_share([layout()], [seen()])


def test_crops_are_square_around_their_box(tool):
    """A white box of 10 x 20 px fills the crop's height and half of its width."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[30:50, 10:20] = 255
    (crop,) = tool.square_crops(image, np.array([[10, 30, 20, 50]]), side=40, margin=0.0)
    assert crop.shape == (40, 40)
    # Apart from the interpolated pixels at its sides.
    assert (crop[2:38, 12:28] == 1).all() and not crop[:, :9].any() and not crop[:, 31:].any()
    (wide,) = tool.square_crops(image, np.array([[10, 30, 20, 50]]), side=40, margin=0.5)
    assert wide.mean() == pytest.approx(crop.mean() / 4, rel=0.05)
    # Around its middle, to a fraction of a pixel; at twice the resolution too.
    large = cv2.resize(image, (128, 128), interpolation=cv2.INTER_NEAREST)
    (same,) = tool.square_crops(large, np.array([[20, 60, 40, 100]]), side=40, margin=0.0)
    for one in (crop, wide, same):
        np.testing.assert_allclose(one, one[::-1, ::-1], atol=1e-3)


def test_crops_beyond_the_image_repeat_its_edge(tool):
    image = np.full((16, 16, 3), 255, np.uint8)
    crops = tool.square_crops(image, np.array([[-6, -6, 4, 4], [12, 2, 24, 6]]), side=8)
    assert (crops == 1).all()
    assert tool.square_crops(image, np.zeros((0, 4))).shape == (0, 32, 32)


def test_both_polarities(tool):
    """A dark bar on grey, beside faint texture: the second is the bar alone, as bright on black."""
    crop = np.full((1, 32, 32), 0.5, np.float32)
    crop[:, 8:24, 12:20] = 0.1
    crop[:, 10, 24] = 0.52
    bright, dark = tool.both_polarities(crop)[0]
    assert (dark[8:24, 12:20] == 1).all() and dark.sum() == 16 * 8
    assert bright.sum() == pytest.approx(0.02 / 0.4, abs=1e-4)
    inverted = tool.both_polarities(1 - crop)[0]
    np.testing.assert_allclose(inverted, [dark, bright], atol=1e-5)
    # Nothing stands out.
    assert (tool.both_polarities(np.ones((1, 32, 32), np.float32)) == 0).all()


def test_the_surer_polarity_counts(tool):
    """Brighter above, darker below: the same shape in both polarities."""
    crops = np.full((4, 32, 32), 0.5, np.float32)
    crops[0, 4:14, 8:24] = 0.9
    crops[1, 18:28, 8:24] = 0.1
    crops[2, 4:14, 8:24] = 0.0
    crops[3, 18:28, 8:24] = 0.6
    assert tool.classes_of(UpperOrLower(), crops, batch=3).tolist() == [1, 0, 1, 0]
    assert len(tool.classes_of(UpperOrLower(), np.zeros((0, 32, 32), np.float32))) == 0


def test_classified_share(tool):
    """Objects of two images, one of them under a wrong name: 2 of 3."""
    images = torch.full((2, 3, 64, 64), 120, dtype=torch.uint8)
    images[0, :, 8:16, 4:20] = 255
    images[1, :, 40:48, 4:20] = 0
    # Each box is twice as high as what it holds.
    layouts = [layout((1, 4, 6, 20, 26)), layout((0, 4, 30, 20, 50), (1, 4, 30, 20, 50))]
    share = tool.classified_share(UpperOrLower(), tool.Scenes(images, layouts))
    assert share == pytest.approx(2 / 3)


def test_real_images_at_another_size(tool, tmp_path):
    """Boxes go along, and what the annotation ignores is left out."""
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[:, :30] = (0, 0, 255)
    cv2.imwrite(str(tmp_path / 'a.png'), pixels)

    class Dataset:
        def __len__(self):
            return 1

        def get_data_info(self, index):
            kept = dict(bbox=[10, 5, 20, 15], bbox_label=2, ignore_flag=0)
            ignored = dict(bbox=[0, 0, 5, 5], bbox_label=1, ignore_flag=1)
            return dict(img_path=str(tmp_path / 'a.png'), instances=[kept, ignored])

    scenes = tool.real_scenes(Dataset(), 5, (60, 90))
    assert scenes.images.shape == (1, 3, 60, 90)
    assert scenes.images[0, :, 5, 5].tolist() == [255, 0, 0]
    np.testing.assert_allclose(scenes.layouts[0].boxes, [[15, 10, 30, 30]])
    assert scenes.layouts[0].labels.tolist() == [2]


def test_pictures(tool, tmp_path):
    """Start scenes above finished ones, and no larger than allowed."""
    rng = torch.Generator().manual_seed(0)
    start, finished = (
        tool.Scenes(
            torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=rng),
            [layout((0, 4, 4, 20, 20))] * 5,
        )
        for _ in range(2)
    )
    grid = tool.before_and_after(start, finished, ('cat',), count=4, columns=2)
    # Two pairs of rows of two images of 256 px.
    assert grid.shape == (4 * (256 + 8) + 8, 2 * (256 + 8) + 8, 3)
    path = tmp_path / 'pictures' / 'grid.jpg'
    tool.save_small(path, grid, most=200_000)
    assert path.stat().st_size <= 200_000 and cv2.imread(str(path)).shape == grid.shape
    with pytest.raises(ValueError, match='fewer scenes'):
        tool.save_small(path, grid, most=1000)


def test_variants_are_made_from_one_start(tool):
    """Random scenes of a tiny teacher: the same layouts; pixels move, but in no step at all."""
    import toy

    from mmdfkd.adapters import Normalizer, build_adapter

    cfg = toy.detector_model()
    adapter = build_adapter(toy.build(cfg, 0), Normalizer.from_config(toy.whole(cfg)))
    setting = dict(
        type='mmdfkd.LayoutInversionSource',
        source=dict(
            type='mmdfkd.PooledSource',
            renderer=dict(type='mmdfkd.ProceduralRenderer'),
            pool_size=10,
            num_workers=0,
        ),
        starts=10,
        steps=2,
        batch=2,
    )
    maker = tool.SceneMaker(setting, adapter, (toy.SIZE, toy.SIZE + 16), 3, seed=5)
    made = {row: maker(tool.VARIANTS[row]) for row in (tool.START, tool.FULL, 'no views')}
    start, full = made[tool.START], made[tool.FULL]
    assert (start.steps, full.steps) == (0, 2)
    for scenes in made.values():
        assert scenes.images.dtype == torch.uint8 and len(scenes.images) == 3
        for one, other in zip(scenes.layouts, start.layouts, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)
            np.testing.assert_array_equal(one.labels, other.labels)
    pixels = [scenes.images.float() for scenes in made.values()]
    assert (pixels[1] - pixels[0]).abs().mean() > 1
    assert not pixels[1].equal(pixels[2])
    # The start is composed, not descended from.
    again = maker(tool.VARIANTS[tool.START])
    assert again.images.equal(start.images)
    found = tool.measure(full, adapter, None, None)
    assert found.keys() == {'teacher_finds'} and 0 <= found['teacher_finds'] <= 1


def test_arguments(tool, tmp_path):
    assert tool.parse_args(['--other', 'none']).other is None
    default = tool.parse_args(['--set', 'bccd'])
    assert 'bccd_40_procedural' in default.other[1]
    args = tool.parse_args(['--other', str(tmp_path / 'a' / 'b' / 'c' / 'd.py'), 'e.pth'])
    assert tool.command_of(args).endswith('--other a/b/c/d.py e.pth')
    with pytest.raises(SystemExit):
        tool.parse_args(['--other', 'one.py'])
    with pytest.raises(FileNotFoundError, match='--other none'):
        tool.load_adapter(tmp_path / 'no.py', tmp_path / 'no.pth')
