import numpy as np
import pytest

import mmdfkd  # noqa: F401
from mmdfkd.evaluation import Annotation
from mmdfkd.visualization import annotated_grid, class_colour, comparison_grid, panel

NAMES = ('a', 'b')


def _has(image: np.ndarray, colour: tuple) -> bool:
    return bool((image == np.array(colour)).all(-1).any())


def test_weak_detections_are_left_out():
    boxes = np.array([[4, 20, 20, 40], [30, 20, 50, 40]], np.float32)
    seen = Annotation(np.array([0, 1]), np.array([0.9, 0.1]), boxes)
    drawn = panel(np.zeros((64, 64, 3), np.uint8), seen, NAMES, 128)
    assert drawn.shape == (128, 128, 3)
    assert _has(drawn, class_colour(0))
    assert not _has(drawn, class_colour(1))
    # The boxes grow with the image.
    assert tuple(drawn[60, 8]) == class_colour(0)


def test_ground_truth_is_drawn_whole():
    seen = Annotation(np.array([0, 1]), boxes=np.array([[4, 20, 20, 40], [30, 20, 50, 40]]))
    drawn = panel(np.zeros((64, 64, 3), np.uint8), seen, NAMES, 128)
    assert _has(drawn, class_colour(0))
    assert _has(drawn, class_colour(1))


@pytest.mark.parametrize('count', [1, 5, 36])
def test_grid_is_near_square_and_enlarged(count):
    images = [np.zeros((32, 32, 3), np.uint8)] * count
    seen = [Annotation(np.array([1]), np.array([0.7]))] * count
    grid = annotated_grid(images, seen, NAMES)
    assert grid.shape[1] <= 1500
    columns = int(np.ceil(np.sqrt(count)))
    assert grid.shape[1] >= columns * 64
    assert 0.4 < grid.shape[0] / grid.shape[1] < 1.6


def test_detection_comparison_has_three_columns():
    images = [np.zeros((50, 100, 3), np.uint8)] * 2
    none = [Annotation(np.zeros(0, int), np.zeros(0), np.zeros((0, 4)))] * 2
    truth = [Annotation(np.array([0]), boxes=np.array([[10.0, 20, 40, 40]]))] * 2
    grid = comparison_grid(images, truth, none, none, NAMES, side=200)
    assert grid.shape[1] == 3 * 200 + 4 * 8
    third = grid.shape[1] // 3
    assert _has(grid[:, :third], class_colour(0))
    assert not _has(grid[:, third:], class_colour(0))


def _tinted(image: np.ndarray, channel: int) -> int:
    """How many pixels (of anti-aliased text) have clearly most of one channel."""
    others = np.delete(image, channel, axis=-1).max(-1).astype(int)
    return int((image[..., channel] > others + 40).sum())


def test_wrong_answers_are_red():
    images = [np.zeros((32, 32, 3), np.uint8)]
    truth = [Annotation(np.array([0]))]
    right = [Annotation(np.array([0]), np.array([0.9]))]
    wrong = [Annotation(np.array([1]), np.array([0.9]))]
    both_right = comparison_grid(images, truth, right, right, NAMES)
    assert _tinted(both_right, 1) > 50
    assert _tinted(both_right, 0) == 0
    one_wrong = comparison_grid(images, truth, right, wrong, NAMES)
    assert _tinted(one_wrong, 1) > 50
    assert _tinted(one_wrong, 0) > 50
