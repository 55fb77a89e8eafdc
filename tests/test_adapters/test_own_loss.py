"""What mmdet's training is given as labels."""

import torch
from mmengine.structures import InstanceData
from torch import nn

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
