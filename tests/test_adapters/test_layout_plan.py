"""A layout's fixed assignment, on cases worked out by hand."""

import torch
from mmdet.structures.bbox import bbox_overlaps

from mmdfkd.adapters.layout import background_boxes, jittered, plan_layout

# Four tiles of 10 px and one of 20 px that covers them.
ANCHORS = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],
        [10.0, 0.0, 20.0, 10.0],
        [0.0, 10.0, 10.0, 20.0],
        [10.0, 10.0, 20.0, 20.0],
        [0.0, 0.0, 20.0, 20.0],
    ]
)


def _plan(boxes, labels):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return plan_layout(boxes, torch.tensor(labels, dtype=torch.long), ANCHORS, (20, 20), 3)


def test_one_box_on_one_anchor():
    plan = _plan([[0, 0, 10, 10]], [2])
    assert plan.positive.tolist() == [0] and plan.matched.tolist() == [0]
    # The 20 px anchor overlaps it by 0.25, the others not at all: all are background.
    assert plan.negative.tolist() == [False, True, True, True, True]


def test_neither_positive_nor_negative_between_the_thresholds():
    # 15 x 20 px: 0.75 with the large anchor, 1 / 3 with the left tiles, 50 / 350 with the right.
    plan = _plan([[0, 0, 15, 20]], [0])
    assert plan.positive.tolist() == [4]
    assert plan.negative.tolist() == [False, True, False, True, False]


def test_the_best_anchor_belongs_to_its_box_below_the_threshold():
    # 4 x 10 px: 0.4 with the first tile.
    plan = _plan([[0, 0, 4, 10]], [1])
    assert plan.positive.tolist() == [0] and plan.matched.tolist() == [0]


def test_two_boxes_with_one_best_anchor():
    """The one that overlaps it more has it, whatever the order."""
    first, second = [0, 0, 10, 10], [0, 0, 9, 10]
    for boxes, winner in (([first, second], 0), ([second, first], 1)):
        plan = _plan(boxes, [0, 1])
        assert plan.positive.tolist() == [0] and plan.matched.tolist() == [winner]


def test_a_box_without_any_anchor_takes_none():
    plan = _plan([[30, 30, 40, 40], [0, 0, 10, 10]], [0, 1])
    assert plan.positive.tolist() == [0] and plan.matched.tolist() == [1]


def test_an_empty_layout_is_all_background():
    plan = _plan([], [])
    assert plan.positive.tolist() == [] and plan.negative.all()
    assert (plan.roi_labels == 3).all() and len(plan.rois) == len(plan.roi_labels) > 0


def test_rois_are_the_boxes_their_copies_and_background():
    boxes = torch.tensor([[20.0, 20.0, 40.0, 44.0], [60.0, 8.0, 76.0, 24.0]])
    plan = plan_layout(boxes, torch.tensor([1, 2]), ANCHORS, (96, 96), 3)
    count = len(plan.roi_matched)
    assert torch.equal(plan.rois[0], boxes[0])
    own = bbox_overlaps(plan.rois[:count], boxes)
    assert (own[torch.arange(count), plan.roi_matched] >= 0.7).all()
    assert plan.roi_labels[:count].tolist() == [[1, 2][i] for i in plan.roi_matched]
    assert (plan.roi_labels[count:] == 3).all()
    assert bbox_overlaps(plan.rois[count:], boxes).max() < 0.3


def test_copies_stay_inside_the_image():
    copies, owner = jittered(torch.tensor([[0.0, 0.0, 30.0, 30.0]]), (24, 28))
    assert copies.min() >= 0 and copies[:, [0, 2]].max() <= 28 and copies[:, [1, 3]].max() <= 24
    assert owner.tolist() == [0] * len(copies)


def test_a_box_over_the_whole_image_leaves_no_background():
    assert len(background_boxes(torch.tensor([[0.0, 0.0, 32.0, 32.0]]), (32, 32))) == 0
