import numpy as np

from mmdfkd.evaluation import Annotation, failures_of
from mmdfkd.visualization import failure_gallery
from mmdfkd.visualization.colours import WRONG


def _reds(picture: np.ndarray) -> int:
    return int((picture == WRONG).all(-1).sum())


def test_missed_objects_have_a_red_frame():
    image = np.full((60, 80, 3), 128, np.uint8)
    box = np.array([[10.0, 10.0, 50.0, 40.0]])
    truth = Annotation(np.array([0]), boxes=box)
    right = Annotation(np.array([0]), np.array([0.9]), box)
    nothing = Annotation(np.zeros(0, int), np.zeros(0), np.zeros((0, 4)))
    pictures = {}
    for name, student in dict(missed=nothing, found=right).items():
        found = failures_of([truth], [right], [student])
        pictures[name] = failure_gallery([image], found, [right], [student], ['cell'], side=240)
    # Three panels of 240 px and their gaps.
    assert pictures['missed'].shape == pictures['found'].shape
    assert pictures['missed'].shape[1] == 3 * 240 + 4 * 8
    # The frame on two of them, 120 + 90 px twice and two pixels wide, against a line of text.
    assert _reds(pictures['missed']) > 1000 + _reds(pictures['found'])
    assert image.min() == image.max() == 128
