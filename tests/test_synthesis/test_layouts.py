"""Layouts from the teacher's own proposals."""

import torch

from mmdfkd.adapters import Probe
from mmdfkd.synthesis.layouts import proposed_layout


def test_wanted_class_first_then_what_is_seen():
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 40, 40], [21, 20, 41, 40], [50, 50, 60, 60]]
    )
    # Three classes and background, as probabilities of each row.
    rows = torch.tensor(
        [
            [0.10, 0.20, 0.10, 0.60],
            [0.90, 0.05, 0.01, 0.04],  # overlaps the one that will show class 1: given up
            [0.01, 0.01, 0.80, 0.18],
            [0.01, 0.01, 0.60, 0.38],  # overlaps the surer one before
            [0.05, 0.10, 0.05, 0.80],  # sure of nothing
        ]
    )
    probe = Probe([boxes, boxes[:0]], [torch.ones(5), torch.ones(0)])
    targets = proposed_layout(probe, rows.log(), torch.tensor([1, 2]))
    assert targets.labels is None
    assert targets.boxes[0].tolist() == [boxes[0].tolist(), boxes[2].tolist()]
    assert targets.box_labels[0].tolist() == [1, 2]
    assert targets.boxes[1].shape == (0, 4) and targets.box_labels[1].shape == (0,)
    few = proposed_layout(probe, rows.log(), torch.tensor([1, 2]), most=1)
    assert len(few.boxes[0]) == 1
