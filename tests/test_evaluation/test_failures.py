"""Found, missed and gained objects, worked out by hand."""

import numpy as np
import pytest

from mmdfkd.evaluation import (
    Annotation,
    box_iou,
    count_failures,
    failures_of,
    failures_table,
    find_objects,
)

NAMES = ('cat', 'dog', 'bird')


def seen(*rows: tuple) -> Annotation:
    """Detections as ``(label, score, x1, y1, x2, y2)``."""
    rows = np.array(rows, float).reshape(-1, 6)
    return Annotation(rows[:, 0].astype(int), rows[:, 1], rows[:, 2:])


def real(*rows: tuple) -> Annotation:
    """Objects as ``(label, x1, y1, x2, y2)``."""
    rows = np.array(rows, float).reshape(-1, 5)
    return Annotation(rows[:, 0].astype(int), boxes=rows[:, 1:])


def test_overlap():
    """A quarter of both in common: 25 of 175; apart; the same; without area."""
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 9]])
    b = np.array([[5, 5, 15, 15], [20, 0, 30, 10], [0, 0, 10, 10]])
    np.testing.assert_allclose(box_iou(a, b), [[25 / 175, 0, 1], [0, 0, 0]])
    assert box_iou(np.zeros((0, 4)), b).shape == (0, 3)


def test_what_finds_an_object():
    truth = real((0, 0, 0, 10, 10))
    # IoU 0.5 to the digit: 10 x 5 of 10 x 10.
    assert find_objects(truth, seen((0, 0.9, 0, 0, 10, 5))).tolist() == [0]
    assert find_objects(truth, seen((0, 0.9, 0, 0, 10, 4.9))).tolist() == [-1]
    # Another class, a low score, nothing at all.
    assert find_objects(truth, seen((1, 0.9, 0, 0, 10, 10))).tolist() == [-1]
    assert find_objects(truth, seen((0, 0.29, 0, 0, 10, 10))).tolist() == [-1]
    assert find_objects(truth, seen((0, 0.3, 0, 0, 10, 10))).tolist() == [0]
    assert find_objects(truth, seen()).tolist() == [-1]
    assert find_objects(real(), seen((0, 0.9, 0, 0, 1, 1))).tolist() == []


def test_a_detection_finds_one_object():
    """Of two objects side by side, and of two boxes on one: the surer one counts."""
    truth = real((0, 0, 0, 10, 10), (0, 2, 0, 12, 10))
    assert find_objects(truth, seen((0, 0.9, 1.9, 0, 12, 10))).tolist() == [-1, 0]
    both = seen((0, 0.4, 0, 0, 10, 10), (0, 0.9, 0, 0, 10, 10))
    # The surer one takes the first; the other one overlaps the second by 8 of 12.
    assert find_objects(truth, both).tolist() == [1, 0]
    assert find_objects(real((0, 0, 0, 10, 10)), both).tolist() == [1]


def test_a_classifier_is_refused():
    with pytest.raises(ValueError, match='no boxes'):
        find_objects(Annotation(np.array([1])), seen())


@pytest.fixture
def found():
    """Three images: the first without a miss, the last with most."""
    truth = [
        real((0, 0, 0, 10, 10)),
        real((0, 0, 0, 40, 40), (1, 50, 50, 60, 60)),
        real((1, 0, 0, 10, 10), (1, 20, 0, 30, 10), (1, 100, 100, 300, 300)),
    ]
    teacher = [
        seen((0, 0.9, 0, 0, 10, 10)),
        seen((0, 0.9, 0, 0, 40, 40)),
        seen((1, 0.9, 0, 0, 10, 10), (1, 0.9, 20, 0, 30, 10), (1, 0.5, 100, 100, 300, 300)),
    ]
    student = [
        seen((0, 0.5, 0, 0, 10, 10)),
        # Misses the cat and finds the dog that the teacher does not.
        seen((1, 0.9, 50, 50, 60, 60)),
        seen((1, 0.2, 0, 0, 10, 10), (1, 0.9, 100, 100, 300, 300)),
    ]
    return failures_of(truth, teacher, student)


def test_most_missed_first(found):
    assert [image.index for image in found] == [2, 1, 0]
    assert [image.missed.tolist() for image in found] == [[0, 1], [0], []]


def test_counts(found):
    counts = count_failures(found, NAMES)
    keys = ('objects', 'teacher', 'student', 'missed', 'gained')

    def rows(group):
        return {name: tuple(row[k] for k in keys) for name, row in counts[group].items()}

    # No bird is in any image.
    assert rows('class') == {'cat': (2, 2, 1, 1, 0), 'dog': (4, 3, 2, 2, 1)}
    # 40 x 40 is above 32 x 32, 200 x 200 above 96 x 96.
    assert rows('size') == {
        'small': (4, 3, 2, 2, 1),
        'medium': (1, 1, 0, 1, 0),
        'large': (1, 1, 1, 0, 0),
    }
    text = failures_table(counts).splitlines()
    assert text[0].split() == list(keys)
    assert text[-1].split() == ['all', '6', '5', '3', '3', '1']


def test_nothing_at_all():
    counts = count_failures(failures_of([real()], [seen()], [seen()]), NAMES)
    assert counts['class'] == {}
    assert failures_table(counts).splitlines()[-1].split() == ['all', '0', '0', '0', '0', '0']
    assert failures_table(count_failures([], NAMES)).splitlines()[-1].split()[0] == 'all'
