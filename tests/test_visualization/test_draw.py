import numpy as np
import pytest

import mmdfkd  # noqa: F401
from mmdfkd.visualization import caption, class_colour, draw_boxes, fit, tile
from mmdfkd.visualization.colours import readable_on
from mmdfkd.visualization.draw import class_name


def test_every_class_has_its_colour():
    colours = [class_colour(i) for i in range(80)]
    assert len(set(colours)) == 80
    # Neighbours must not be mistaken for each other.
    steps = np.abs(np.diff(np.array(colours), axis=0)).max(1)
    assert steps.min() > 60
    assert readable_on((255, 255, 0)) == (0, 0, 0)
    assert readable_on((0, 0, 120)) == (255, 255, 255)


@pytest.mark.parametrize(
    ('size', 'grown'),
    [((32, 32), (384, 384)), ((128, 96), (384, 288)), ((300, 300), (384, 384))],
)
def test_small_images_grow(size, grown):
    image, factor = fit(np.zeros((*size, 3), np.uint8), 384)
    assert image.shape[:2] == grown
    assert factor == grown[0] / size[0]


def test_small_images_stay_sharp_and_large_ones_shrink():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    grown, factor = fit(image, 17)
    assert factor == 2
    assert (grown[::2, ::2] == image).all()
    assert (grown[1::2, 1::2] == image).all()
    shrunk, factor = fit(np.zeros((750, 1333, 3), np.uint8), 384)
    assert shrunk.shape[:2] == (216, 384)
    assert factor == pytest.approx(384 / 1333)


def test_boxes_are_drawn_in_the_colour_of_their_class():
    image = np.zeros((60, 60, 3), np.uint8)
    drawn = draw_boxes(image, np.array([[10.0, 30.0, 50.0, 55.0]]), [3], ['a', 'b', 'c', 'd'])
    assert tuple(drawn[45, 10]) == class_colour(3)
    assert tuple(drawn[55, 30]) == class_colour(3)
    assert not drawn[45, 30].any()
    assert not image.any()


@pytest.mark.parametrize('box', [[0, 0, 8, 8], [55, 0, 60, 60], [-9, -9, 90, 90], [58, 58, 60, 60]])
def test_boxes_at_the_border(box):
    """The tag stays inside, whatever the box and its name."""
    drawn = draw_boxes(np.zeros((60, 60, 3), np.uint8), np.array([box]), [0], ['name'], [0.5])
    assert drawn.shape == (60, 60, 3)
    assert (drawn == np.array(class_colour(0))).all(-1).sum() > 60


def test_no_boxes():
    image = np.full((20, 20, 3), 7, np.uint8)
    assert (draw_boxes(image, np.zeros((0, 4)), [], []) == image).all()


def test_names_without_a_glyph_or_without_a_name():
    assert class_name(['cat', '猫'], 0) == 'cat'
    assert class_name(['cat', '猫'], 1) == '1'
    assert class_name([], 5) == '5'


def test_caption_is_cut_to_the_width():
    image = np.zeros((10, 80, 3), np.uint8)
    lines = [('a very long caption that goes on and on', (0, 0, 0)), ('b', (200, 0, 0))]
    written = caption(image, lines)
    assert written.shape[1] == 80
    assert written.shape[0] > 30
    strip = written[10:]
    # Something is written, and nothing is cut by the border.
    assert (strip < 128).any()
    assert (strip[:, -2:] == 255).all()


def test_tiles_of_different_sizes():
    panels = [
        np.full((h, w, 3), i, np.uint8) for i, (h, w) in enumerate([(10, 20), (30, 8), (5, 5)])
    ]
    canvas = tile(panels, 2, gap=4)
    assert canvas.shape == (4 + 30 + 4 + 5 + 4, 4 + 20 + 4 + 8 + 4, 3)
    for value, panel in enumerate(panels):
        assert (canvas == value).all(-1).sum() == panel.shape[0] * panel.shape[1]
    headed = tile(panels, 2, gap=4, heads=('one', 'two'))
    assert headed.shape[0] > canvas.shape[0]
