"""A detector's own training loss, on what is computed of it already: features and encoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .observation import Memory


@contextmanager
def _given(net: nn.Module, memory: Memory) -> Iterator[None]:
    """Let a detector take a memory for what it would compute, and behave as in training.

    That is the features and, of a DETR, what its encoder makes of them.

    The flag is the detector's alone: no norm and no dropout of its parts changes. In evaluation
    mode DINO's and Deformable DETR's ``loss`` fails.
    """
    training = net.training
    given = dict(extract_feat=lambda _: memory.feats)
    if memory.encoder is not None:
        # A copy: what is returned is mmdet's to change.
        given['forward_encoder'] = lambda **_: dict(memory.encoder.before_decoder)
    for name, method in given.items():
        setattr(net, name, method)
    hooks = []
    if getattr(net, 'with_rpn', False):
        # mmdet makes anchors of the maps' type: in half precision proposals would miss pixels.
        hooks.append(net.rpn_head.register_forward_hook(_in_full_precision))
    net.training = True
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name in given:
            delattr(net, name)
        net.training = training


def _in_full_precision(_, __, maps: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
    return tuple([x.float() for x in levels] for levels in maps)


def _assigns_itself(net: nn.Module) -> bool:
    """Whether mmdet trains it without a ``train_cfg``: FCOS, whose published configs have none."""
    head = getattr(net, 'bbox_head', None)
    return any(kind.__name__ == 'FCOSHead' for kind in type(head).__mro__)


def own_loss(
    net: nn.Module, memory: Memory, objects: Sequence[InstanceData], divisor: int = 1
) -> dict[str, Tensor]:
    """What mmdet's training would say of a detector, were these objects the labels.

    Assigners and samplers are those of its ``train_cfg``; the samplers draw from the global
    generators.

    Args:
        net (nn.Module): An mmdet detector.
        memory (Memory): Its own, with gradient.
        objects (Sequence[InstanceData]): Per image ``bboxes``, ``labels`` and, for networks with a
            mask head, ``masks`` ``[N, H, W]``; may be empty.
        divisor (int): What the network's preprocessor pads images to multiples of.

    Returns:
        dict[str, Tensor]: Scalars by mmdet's names; lists, one term a level, are summed.

    Raises:
        ValueError: If the config lacks a ``train_cfg``, or masks are missing.
    """
    # Imported here: classifiers come without mmdet.
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    if not getattr(net, 'train_cfg', None) and not _assigns_itself(net):
        raise ValueError(
            f'{type(net).__name__} has no train_cfg, so it has no training loss: give its config '
            "(of mmdfkd.Shrunk: the teacher's) that of its published recipe."
        )
    h, w = memory.image_size
    padded = (h + -h % divisor, w + -w % divisor)
    meta = dict(
        img_shape=(h, w),
        ori_shape=(h, w),
        batch_input_shape=padded,
        pad_shape=padded,
        scale_factor=(1.0, 1.0),
    )
    like, samples = memory.feats[0], []
    for found in objects:
        # In full precision: a box of 256 x 256 px has more square pixels than a half can hold.
        labelled = InstanceData(
            bboxes=found.bboxes.to(like.device, torch.float32), labels=found.labels.to(like.device)
        )
        if getattr(net, 'with_mask', False):
            if 'masks' not in found:
                raise ValueError(
                    f'{type(net).__name__} has a mask head, but the detections have no masks: '
                    'give it a teacher with masks.'
                )
            masks = np.asarray(
                found.masks.cpu() if isinstance(found.masks, Tensor) else found.masks
            )
            labelled.masks = BitmapMasks(masks.astype(np.uint8), h, w)
        sample = DetDataSample(metainfo=dict(meta))
        sample.gt_instances = labelled
        sample.ignored_instances = InstanceData(
            bboxes=labelled.bboxes[:0], labels=found.labels.new_zeros(0)
        )
        samples.append(sample)
    with _given(net, memory):
        losses = net.loss(like, samples)
    return {
        name: sum(v.mean() for v in value) if isinstance(value, list | tuple) else value.mean()
        for name, value in losses.items()
        if 'loss' in name
    }
