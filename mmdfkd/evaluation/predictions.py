"""What a test set, and a tested network, say about single images."""

from dataclasses import dataclass
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor

from mmdfkd.adapters import Adapter
from mmdfkd.adapters.normalizer import delivered_order

from .testing import Tested


@dataclass
class Annotation:
    """What somebody sees in one image.

    Attributes:
        labels: ``[N]`` class indices; one for a classifier.
        scores: ``[N]`` in [0, 1], or None for the ground truth.
        boxes: ``[N, 4]`` xyxy pixels of the image, or None for a classifier.
    """

    labels: np.ndarray
    scores: np.ndarray | None = None
    boxes: np.ndarray | None = None


def _array(value: Any) -> np.ndarray:
    value = getattr(value, 'tensor', value)
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` indices evenly over ``range(count)``; fewer where there are fewer."""
    wanted = min(wanted, count)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def image_of(tested: Tested, index: int) -> np.ndarray:
    """One test image as RGB ``[H, W, 3]`` uint8.

    The file where there are boxes to draw on it, else what the network is fed.
    """
    info = tested.dataset.get_data_info(index)
    if 'instances' in info and info.get('img_path'):
        return mmcv.imread(info['img_path'], channel_order='rgb')
    inputs = _array(tested.dataset[index]['inputs']).transpose(1, 2, 0)
    if inputs.dtype != np.uint8:
        inputs = inputs.clip(0, 255).astype(np.uint8)
    if inputs.shape[2] == 1:
        return inputs.repeat(3, 2)
    rgb = delivered_order(tested.cfg) == 'rgb'
    return np.ascontiguousarray(inputs if rgb else inputs[..., ::-1])


def ground_truth(tested: Tested, index: int) -> Annotation:
    """What the test set's annotation says, boxes in pixels of the original image."""
    info = tested.dataset.get_data_info(index)
    if 'instances' not in info:
        return Annotation(np.atleast_1d(_array(info['gt_label'])))
    instances = [i for i in info['instances'] if not i.get('ignore_flag')]
    boxes = np.array([i['bbox'] for i in instances], np.float32).reshape(-1, 4)
    return Annotation(np.array([i['bbox_label'] for i in instances], int), boxes=boxes)


@torch.no_grad()
def prediction(tested: Tested, index: int) -> Annotation:
    """What the network says about one test image, boxes in pixels of the original image."""
    sample = tested.net.test_step(pseudo_collate([tested.dataset[index]]))[0]
    if 'pred_instances' in sample:
        found = sample.pred_instances
        return Annotation(_array(found.labels), _array(found.scores), _array(found.bboxes))
    label = _array(sample.pred_label).reshape(-1)
    return Annotation(label, _array(sample.pred_score)[label])


@torch.no_grad()
def seen_in(adapter: Adapter, images: Tensor) -> list[Annotation]:
    """What a network sees in images that no pipeline loaded.

    Args:
        adapter (Adapter): The network.
        images (Tensor): RGB, uint8, ``[N, 3, H, W]``.
    """
    device = next(adapter.net.parameters()).device
    seen = []
    for image in images:
        memory = adapter.encode(image[None].to(device).float() / 255)
        if adapter.detects:
            found = adapter.detect(memory)[0]
            seen.append(
                Annotation(_array(found.labels), _array(found.scores), _array(found.bboxes))
            )
        else:
            score, label = adapter.class_votes(memory)[0].max(0)
            seen.append(Annotation(_array(label).reshape(1), _array(score).reshape(1)))
    return seen
