"""The checks of COCO's images: each fails on what it is there for."""

import importlib.util
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from tiny_runs import ROOT

# COCO's ids, 1 to 90, that no category has.
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [i for i in range(1, 91) if i not in UNUSED]


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'benchmarks' / 'coco_images.py'
    spec = importlib.util.spec_from_file_location('coco_images', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _annotations(count=3, names=None) -> dict:
    names = names or [f'class {i}' for i in IDS]
    images = [dict(id=7 + i, file_name=f'{i}.png', width=60, height=40) for i in range(count)]
    return dict(
        images=images,
        annotations=[
            dict(id=i + 1, image_id=7 + i, category_id=90, bbox=[5, 5, 20, 10], area=200, iscrowd=0)
            for i in range(count)
        ],
        categories=[dict(id=i, name=name) for i, name in zip(IDS, names, strict=True)],
    )


def _answers(annotations: dict) -> tuple[list, list]:
    """Every class once in every image, as a test writes it."""
    labels = torch.arange(80)
    predictions = [
        dict(img_id=image['id'], pred_instances=dict(labels=labels))
        for image in annotations['images']
    ]
    detections = [
        dict(image_id=image['id'], category_id=i, bbox=[0, 0, 60, 40], score=0.5)
        for image in annotations['images']
        for i in IDS
    ]
    return predictions, detections


def _failed(found) -> list[str]:
    return [check.name for check in found if not check.passed]


def test_a_whole_test_passes(tool):
    annotations = _annotations()
    assert not _failed(tool.checks(annotations, *_answers(annotations), 7, True))


def test_an_image_that_was_left_out(tool):
    annotations = _annotations()
    predictions, detections = _answers(annotations)
    detections = [d for d in detections if d['image_id'] != 7]
    found = tool.checks(annotations, predictions[1:], detections, 7, True)
    assert _failed(found) == ['every image read', 'an image without boxes']


def test_an_image_that_was_read_twice(tool):
    annotations = _annotations()
    predictions, detections = _answers(annotations)
    found = tool.checks(annotations, [*predictions, predictions[0]], detections, 7, True)
    assert _failed(found) == ['every image read']


def test_labels_that_were_written_as_ids(tool):
    """0 to 79 instead of COCO's own: some of those are ids, too, of other classes."""
    annotations = _annotations()
    predictions, detections = _answers(annotations)
    for detection in detections:
        detection['category_id'] = IDS.index(detection['category_id'])
    found = tool.checks(annotations, predictions, detections, 7, True)
    assert _failed(found) == ['original category ids', 'each class under its own id']


def test_two_classes_that_were_exchanged(tool):
    annotations = _annotations()
    predictions, detections = _answers(annotations)
    detections[0]['category_id'], detections[1]['category_id'] = IDS[1], IDS[0]
    found = tool.checks(annotations, predictions, detections, 7, True)
    assert _failed(found) == ['each class under its own id']


def test_a_class_that_is_missing(tool):
    """Only where all are kept; a trained student need not find a toaster."""
    annotations = _annotations()
    predictions, detections = _answers(annotations)
    for prediction in predictions:
        prediction['pred_instances'] = dict(labels=torch.arange(79))
    detections = [d for d in detections if d['category_id'] != 90]
    found = tool.checks(annotations, predictions, detections, 7, True)
    assert _failed(found) == ['original category ids']
    assert not _failed(tool.checks(annotations, predictions, detections, 7, False))


def test_boxes_that_were_not_scaled_back(tool):
    annotations = _annotations()
    predictions, detections = _answers(annotations)
    detections[3]['bbox'] = [0, 0, 256, 171]
    found = tool.checks(annotations, predictions, detections, 7, True)
    assert _failed(found) == ['boxes within their image']


def test_an_image_without_boxes_is_found_or_made(tool):
    annotations = _annotations()
    changed, empty = tool.with_an_empty_image(annotations)
    assert empty == 7 and [a['image_id'] for a in changed['annotations']] == [8, 9]
    # What is there already is taken as it is.
    assert tool.with_an_empty_image(changed) == (changed, 7)
    assert len(annotations['annotations']) == 3
    with pytest.raises(ValueError, match='no image'):
        tool.with_an_empty_image(dict(annotations, images=[]))


def test_a_missing_folder_is_told(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match='--data-root'):
        tool.main(['--data-root', str(tmp_path)])


def test_a_small_student_reads_images(tool, tmp_path, capsys):
    """The run's own chain, on a narrow teacher: test tool, CocoMetric, results file."""
    from mmdet.datasets import CocoDataset

    rng = np.random.default_rng(0)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'images').mkdir()
    annotations = _annotations(names=CocoDataset.METAINFO['classes'])
    for image in annotations['images']:
        pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'images' / image['file_name']), pixels)
    (tmp_path / 'annotations' / 'instances_val.json').write_text(json.dumps(annotations))
    cfg = Config.fromfile(ROOT / 'configs/coco/vitdet_mask-rcnn_vit-b-mae_lsj-100e.py')
    cfg.model.backbone.update(
        arch=dict(embed_dims=64, num_layers=1, num_heads=2, feedforward_channels=64,
                  global_indices=(0,)),
        img_size=224,
    )  # fmt: skip
    cfg.model.neck.update(in_channels=64, out_channels=16)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    roi = cfg.model.roi_head
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        roi[name].out_channels = 16
    roi.bbox_head.update(in_channels=16, conv_out_channels=16, fc_out_channels=16)
    roi.mask_head.update(in_channels=16, conv_out_channels=16)
    cfg.dump(tmp_path / 'teacher.py')
    tool.main(
        [
            *('--data-root', str(tmp_path), '--size', '64'),
            *('--cfg-options', f'model.teacher.config={tmp_path / "teacher.py"}'),
        ]
    )
    # mmdet prints a line of its own before them.
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line[:4] for line in lines] == ['ok  '] * 5
    assert '3 of 3' in lines[0] and '80 of 80, 1 to 90' in lines[1]
