"""Agreement of detections and of classes, worked out by hand."""

import math

import pytest
import torch
import toy
from mmengine.structures import InstanceData

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.evaluation import (
    class_probabilities,
    classification_agreement,
    detection_agreement,
    detections,
)


def seen(*rows: tuple) -> InstanceData:
    """Detections of one image as ``(label, score, x1, y1, x2, y2)``."""
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return InstanceData(bboxes=rows[:, 2:], scores=rows[:, 1], labels=rows[:, 0].long())


TRUTH = [
    seen((0, 0.9, 0, 0, 20, 20), (1, 0.4, 30, 30, 50, 60)),
    seen((0, 0.8, 10, 10, 40, 40)),
]


def test_the_same_detections():
    found = detection_agreement(TRUTH, TRUTH, 2)
    assert found['bbox_mAP'] == pytest.approx(1) and found['bbox_mAP_50'] == pytest.approx(1)
    assert found['objects'] == 3


def test_unsure_detections_of_the_teacher_are_no_objects():
    unsure = [*TRUTH, seen((1, 0.29, 0, 0, 9, 9))]
    assert detection_agreement(unsure, unsure, 2)['objects'] == 3
    assert detection_agreement(unsure, unsure, 2, least_score=0.5)['objects'] == 2


def test_shifted_boxes():
    """By 4 of 20 px: IoU 320 / 480, so right at the thresholds 0.5 to 0.65, four of ten."""
    truth = [seen((0, 0.9, 0, 0, 20, 20))]
    found = detection_agreement([seen((0, 0.9, 4, 0, 24, 20))], truth, 1)
    assert found['bbox_mAP'] == pytest.approx(0.4)
    assert found['bbox_mAP_50'] == pytest.approx(1)


def test_wrong_class():
    truth = [seen((0, 0.9, 0, 0, 20, 20))]
    found = detection_agreement([seen((1, 0.9, 0, 0, 20, 20))], truth, 2)
    assert found['bbox_mAP'] == found['bbox_mAP_50'] == 0


def test_boxes_of_another_image():
    truth = [seen((0, 0.9, 0, 0, 20, 20)), seen((0, 0.9, 30, 30, 60, 60))]
    assert detection_agreement(truth[::-1], truth, 1)['bbox_mAP'] == 0


def test_half_of_the_objects():
    """Precision 1 up to a recall of 0.5: 51 of COCO's 101 points."""
    truth = [seen((0, 0.9, 0, 0, 20, 20)), seen((0, 0.9, 30, 30, 60, 60))]
    found = detection_agreement([truth[0], seen()], truth, 1)
    assert found['bbox_mAP'] == pytest.approx(51 / 101)


def test_a_surer_wrong_detection_costs():
    """It comes first, so precision is 1 / 2 at every recall; last, it costs nothing."""
    truth = [seen((0, 0.9, 0, 0, 20, 20))]
    for score, expected in ((0.95, 0.5), (0.2, 1.0)):
        answer = [seen((0, 0.9, 0, 0, 20, 20), (0, score, 40, 40, 60, 60))]
        assert detection_agreement(answer, truth, 1)['bbox_mAP'] == pytest.approx(expected)


def test_no_answers_and_no_objects():
    found = detection_agreement([seen(), seen()], TRUTH, 2)
    assert found == dict(bbox_mAP=0.0, bbox_mAP_50=0.0, objects=3.0)
    with pytest.raises(ValueError, match='no object with a score of 0.3'):
        detection_agreement(TRUTH, [seen((0, 0.2, 0, 0, 20, 20)), seen()], 2)


def test_pixels_of_both_kinds():
    """uint8, or in [0, 1]; and in batches of any size."""
    cfg = toy.detector_model()
    adapter = build_adapter(toy.build(cfg), Normalizer.from_config(toy.whole(cfg)))
    images = (toy.images(3) * 255).round().to(torch.uint8)
    whole, parts = detections(adapter, images), detections(adapter, images.float() / 255, batch=2)
    assert len(whole) == len(parts) == 3 and len(whole[0].bboxes)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.bboxes, other.bboxes, atol=1e-3, rtol=1e-4)
        assert one.labels.equal(other.labels)


def test_classes_agree_by_their_first_and_their_divergence():
    teacher = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]])
    student = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]])
    found = classification_agreement(student, teacher)
    first = 0.5 * math.log(2)
    second = 0.25 * math.log(1 / 3) + 0.75 * math.log(3)
    assert found['top1'] == 0.5
    assert found['divergence'] == pytest.approx((first + second) / 2)
    same = classification_agreement(teacher, teacher)
    assert same == dict(top1=1.0, divergence=0.0)


def test_answers_to_other_images_are_refused():
    with pytest.raises(ValueError, match='same images'):
        classification_agreement(torch.ones(2, 3), torch.ones(3, 3))


def test_probabilities_do_not_depend_on_the_batches():
    adapter = build_adapter(
        toy.build(toy.classifier_model(), scope='mmpretrain').eval(),
        Normalizer([0.0] * 3, [255.0] * 3, 'rgb'),
    )
    images = torch.randint(0, 256, (3, 3, toy.SIZE, toy.SIZE), dtype=torch.uint8)
    found = class_probabilities(adapter, images, batch=2)
    assert found.shape == (3, adapter.num_classes)
    torch.testing.assert_close(found, class_probabilities(adapter, images.float() / 255))
    torch.testing.assert_close(found.sum(1), torch.ones(3))
