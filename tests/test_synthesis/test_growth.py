"""Layouts that grow by what the teacher detects, and lose what it does not."""

import torch
from mmengine.structures import InstanceData

from mmdfkd.synthesis.growth import LabelGrowth

SIZE = (100, 200)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def seen(*rows):
    """Detections ``(x0, y0, x1, y1, score, label)``, best first."""
    rows = torch.tensor(sorted(rows, key=lambda row: -row[4])).reshape(-1, 6)
    return InstanceData(bboxes=rows[:, :4], scores=rows[:, 4], labels=rows[:, 5].long())


def revise(own, labels, detections, **settings):
    out = LabelGrowth(**settings)([own], [torch.tensor(labels)], [detections], SIZE)
    return out[0][0], out[1][0]


A, B, C = (10.0, 10, 40, 40), (60.0, 10, 90, 40), (120.0, 50, 160, 90)


def test_adds_what_is_surely_seen():
    own, labels = revise(boxes(A), [3], seen((*A, 0.9, 3), (*C, 0.8, 1), (*B, 0.4, 2)))
    assert own.tolist() == [list(A), list(C)] and labels.tolist() == [3, 1]
    assert labels.dtype == torch.int64


def test_adds_nothing_over_a_present_box():
    near = (15.0, 12, 44, 42)
    own, labels = revise(boxes(A), [3], seen((*near, 0.95, 1), (*A, 0.9, 3)))
    assert own.tolist() == [list(A)] and labels.tolist() == [3]
    # Nor over one that was just added.
    close = (122.0, 52, 162, 92)
    own, _ = revise(boxes(A), [3], seen((*A, 0.9, 3), (*C, 0.8, 1), (*close, 0.7, 2)))
    assert own.tolist() == [list(A), list(C)]


def test_drops_what_never_appeared():
    own, labels = revise(boxes(A, B), [3, 4], seen((*A, 0.15, 3), (*B, 0.05, 4)))
    assert own.tolist() == [list(A)] and labels.tolist() == [3]


def test_keeps_the_one_seen_best():
    """All detections are far off; the box with the largest overlap stays."""
    off = (60.0, 35, 90, 70)
    own, labels = revise(boxes(A, B), [3, 4], seen((*off, 0.3, 4)))
    assert own.tolist() == [list(B)] and labels.tolist() == [4]


def test_keeps_everything_while_nothing_is_seen():
    for detections in (seen(), seen((*A, 0.05, 3))):
        own, labels = revise(boxes(A, B), [3, 4], detections)
        assert own.tolist() == [list(A), list(B)] and labels.tolist() == [3, 4]


def test_an_empty_layout():
    none = torch.zeros(0, dtype=torch.long)
    own, labels = LabelGrowth()([boxes()], [none], [seen()], SIZE)
    assert own[0].shape == (0, 4) and labels[0].shape == (0,)
    own, labels = LabelGrowth()([boxes()], [none], [seen((*A, 0.9, 7))], SIZE)
    assert own[0].tolist() == [list(A)] and labels[0].tolist() == [7]
    assert labels[0].dtype == torch.int64


def test_sizes_of_what_is_added():
    sliver, whole = (100.0, 5, 150, 9), (0.0, 0, 200, 95)
    found = seen((*A, 0.9, 3), (*sliver, 0.9, 1), (*whole, 0.9, 2))
    assert len(revise(boxes(A), [3], found, least_size=5)[0]) == 1
    assert len(revise(boxes(A), [3], found, least_size=4)[0]) == 2
    assert len(revise(boxes(A), [3], found, least_size=4, largest=1.0)[0]) == 3


def test_no_more_than_most():
    row = [(20.0 * i, 0.0, 20.0 * i + 15, 15.0, 0.9 - 0.01 * i, i) for i in range(10)]
    own, labels = revise(boxes(), [], seen(*row), most=4)
    assert labels.tolist() == [0, 1, 2, 3], 'the surest ones'
    own, labels = revise(boxes(row[9][:4], row[8][:4]), [9, 8], seen(*row), most=1)
    assert labels.tolist() == [9, 8], 'what is there and seen is not cut'


def test_images_are_revised_each_on_its_own():
    layouts = [boxes(A), boxes(A, B)]
    kinds = [torch.tensor([3]), torch.tensor([3, 4])]
    found = [seen((*C, 0.9, 1)), seen((*B, 0.9, 4))]
    kept = [x.clone() for x in layouts]
    own, labels = LabelGrowth()(layouts, kinds, found, SIZE)
    assert own[0].tolist() == [list(A), list(C)] and labels[1].tolist() == [4]
    assert all(torch.equal(a, b) for a, b in zip(kept, layouts, strict=True)), 'the input stays'
