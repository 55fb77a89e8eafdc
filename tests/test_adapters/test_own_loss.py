"""What mmdet's training is given as labels."""

import pytest
import torch
import toy
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import nn

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.adapters.observation import Memory
from mmdfkd.adapters.own_loss import own_loss


class Detector(nn.Module):
    """Keeps the samples that its loss is asked about."""

    train_cfg = None

    def __init__(self):
        super().__init__()
        self.train_cfg = dict(rcnn=None)

    def loss(self, inputs, samples):
        self.samples = samples
        return dict(loss=inputs.float().mean())


def test_boxes_stay_in_full_precision():
    """Under mixed precision features are halves, which hold no area beyond 65,504 square pixels."""
    net, memory = Detector(), Memory((torch.ones(1, 4, 2, 2).half(),), (1024, 1024))
    box = torch.tensor([[3.25, 4.0, 999.5, 1000.0]])
    objects = [InstanceData(bboxes=box, labels=torch.tensor([1]))]
    own_loss(net, memory, objects)
    (sample,) = net.samples
    assert torch.equal(sample.gt_instances.bboxes, box)
    assert sample.gt_instances.bboxes.dtype == torch.float32
    assert sample.ignored_instances.bboxes.shape == (0, 4)
    assert sample.ignored_instances.bboxes.dtype == torch.float32


ASSIGN = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.0)
SAMPLER = dict(type='RandomSampler', num=16, pos_fraction=0.5)
RCNN = dict(
    assigner=ASSIGN, sampler=dict(SAMPLER, add_gt_as_proposals=True), pos_weight=-1, mask_size=6
)
TRAIN = dict(
    rpn=dict(
        assigner=ASSIGN,
        sampler=dict(SAMPLER, add_gt_as_proposals=False),
        allowed_border=-1,
        pos_weight=-1,
    ),
    rpn_proposal=dict(
        nms_pre=60, max_per_img=12, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
    ),
    rcnn=RCNN,
)


EDGE = 64


def model_of(kind):
    if kind in ('faster', 'mask'):
        return dict(toy.detector_model(mask=kind == 'mask'), train_cfg=TRAIN)
    if kind == 'cascade':
        return dict(toy.cascade_model(), train_cfg=dict(TRAIN, rcnn=[RCNN, RCNN]))
    if kind in ('detr', 'deformable'):
        return toy.detr_model(kind)
    return toy.one_stage_model(kind)


@pytest.mark.parametrize(
    'kind',
    ['faster', 'mask', 'cascade', 'detr', 'deformable', 'retina', 'fcos', 'gfl', 'rtmdet'],
)
def test_it_is_what_mmdet_trains_with(kind):
    """The same numbers as the network's own loss of the same labelled images, term by term."""
    model = model_of(kind)
    net = toy.build(model, 3)
    adapter = build_adapter(net, Normalizer.from_config(toy.whole(model)))
    pixels = toy.images(2, EDGE)
    boxes = [torch.tensor([[4.0, 6, 30, 28], [20, 24, 60, 62]]), torch.tensor([[8.0, 8, 40, 44]])]
    labels = [torch.tensor([1, 2]), torch.tensor([0])]
    objects, samples = [], []
    for box, label in zip(boxes, labels, strict=True):
        mask = torch.zeros(len(box), EDGE, EDGE, dtype=torch.bool)
        for one, (x0, y0, x1, y1) in zip(mask, box.int().tolist(), strict=True):
            one[y0:y1, x0:x1] = True
        objects.append(InstanceData(bboxes=box, labels=label, masks=mask))
        truth = InstanceData(bboxes=box, labels=label)
        if net.with_mask:
            truth.masks = BitmapMasks(mask.byte().numpy(), *mask.shape[1:])
        sample = DetDataSample(gt_instances=truth)
        sample.set_metainfo(
            dict(
                img_shape=(EDGE, EDGE),
                ori_shape=(EDGE, EDGE),
                batch_input_shape=(EDGE, EDGE),
                pad_shape=(EDGE, EDGE),
                scale_factor=(1.0, 1.0),
            )
        )
        samples.append(sample)
    net.train()
    torch.manual_seed(5)
    found = adapter.own_loss(adapter.encode(pixels), objects)
    torch.manual_seed(5)
    wanted = net.loss(adapter.normalizer(pixels), samples)
    wanted = {
        k: float((sum(x.mean() for x in v) if isinstance(v, list | tuple) else v.mean()).detach())
        for k, v in wanted.items()
        if 'loss' in k
    }
    assert sum(wanted.values()) > 0
    assert {k: float(v.detach()) for k, v in found.items()} == pytest.approx(
        wanted, rel=1e-4, abs=1e-6
    )
