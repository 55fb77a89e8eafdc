"""The heads between two real networks, through their adapters."""

import copy
from pathlib import Path

import mmdfkd  # noqa: F401  isort: skip (mends torchvision before mmpretrain imports it)
import pytest
import torch
from mmdet.registry import MODELS as DETECTORS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as CLASSIFIERS
from mmpretrain.utils import register_all_modules as register_classifiers

from mmdfkd.adapters import Normalizer, Observation, Targets, build_adapter
from mmdfkd.registry import MODELS

CONFIG = Path(__file__).parents[2] / 'configs' / '_base_' / 'vitdet_digits.py'
NORMALIZER = Normalizer([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], 'rgb')
DETECTION_HEADS = [
    {'type': 'mmdfkd.PyramidHead'},
    {'type': 'mmdfkd.PyramidHead', 'mode': 'pkd', 'name': 'pkd'},
    {'type': 'mmdfkd.RPNResponseHead'},
    {'type': 'mmdfkd.RoIResponseHead'},
]


def detector(width, channels, class_agnostic):
    """A one-block detector after the embedded default's own config."""
    cfg = ConfigDict(copy.deepcopy(Config.fromfile(CONFIG).model.to_dict()))
    cfg.backbone.arch = {
        'embed_dims': width,
        'num_layers': 1,
        'num_heads': 2,
        'feedforward_channels': width,
        'global_indices': (0,),
    }
    cfg.neck.in_channels = width
    for part in (cfg.neck, cfg.roi_head.bbox_roi_extractor):
        part.out_channels = channels
    cfg.rpn_head.in_channels = cfg.rpn_head.feat_channels = channels
    cfg.roi_head.bbox_head.in_channels = channels
    cfg.roi_head.bbox_head.fc_out_channels = 16
    cfg.roi_head.bbox_head.reg_class_agnostic = class_agnostic
    with DefaultScope.overwrite_default_scope('mmdet'):
        net = DETECTORS.build(cfg)
    net.init_weights()
    return build_adapter(net, NORMALIZER)


def classifier(width, depth):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        net = CLASSIFIERS.build(
            {
                'type': 'ImageClassifier',
                'backbone': {
                    'type': 'VisionTransformer',
                    'arch': {
                        'embed_dims': width,
                        'num_layers': depth,
                        'num_heads': 2,
                        'feedforward_channels': width,
                    },
                    'img_size': 32,
                    'patch_size': 8,
                },
                'head': {'type': 'LinearClsHead', 'num_classes': 5, 'in_channels': width},
            }
        )
    return build_adapter(net, NORMALIZER)


def widths(memory):
    found = {'neck': [f.shape[1] for f in memory.feats]}
    found.update({name: value.shape[-1] for name, value in memory.taps.items()})
    return found


def step(student, teacher, heads, images):
    """What a training step does with the heads: losses by name, after a backward."""
    heads = [MODELS.build(h) for h in heads]
    taps_s = [t for h in heads for t in h.needs.taps_student]
    taps_t = [t for h in heads for t in h.needs.taps_teacher]
    theirs = teacher.observe(images, taps_t)
    memory = student.encode(images, taps_s)
    mine = Observation(memory, theirs.probe, student.answer(memory, theirs.probe))
    losses = {}
    for head in heads:
        head.build_aligners(widths(memory), widths(theirs.memory))
        losses.update(head(mine, theirs, Targets(), images))
    sum(losses.values()).backward()
    trained = [*student.net.named_parameters()]
    trained += [pair for h in heads for pair in h.named_parameters()]
    return losses, trained


@pytest.mark.parametrize('class_agnostic', [True, False])
def test_detectors(class_agnostic):
    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    student, teacher = detector(8, 8, class_agnostic), detector(16, 12, class_agnostic)
    losses, trained = step(student, teacher, DETECTION_HEADS, torch.rand(2, 3, 64, 64))
    assert set(losses) == {
        'loss_pyramid',
        'loss_pkd_pyramid',
        'loss_rpn_cls',
        'loss_rpn_bbox',
        'loss_roi_cls',
        'loss_roi_bbox',
    }
    assert all(v.ndim == 0 and torch.isfinite(v) and v > 0 for v in losses.values())
    assert [n for n, p in trained if p.grad is None] == []
    assert all(p.grad is None for p in teacher.net.parameters())


def test_a_teacher_that_proposes_nothing():
    """Every trained parameter still gets a gradient, so that ranks agree on the graph."""
    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    student, teacher = detector(8, 8, True), detector(16, 12, True)
    # No box is as large: there are no proposals at all.
    teacher.net.rpn_head.test_cfg.min_bbox_size = 1000
    losses, trained = step(student, teacher, DETECTION_HEADS, torch.rand(2, 3, 64, 64))
    assert losses['loss_roi_cls'] == losses['loss_roi_bbox'] == 0
    assert [n for n, p in trained if p.grad is None] == []
    box_head = [p for n, p in trained if n.startswith('roi_head')]
    assert box_head
    assert not any(p.grad.any() for p in box_head)


def test_classifiers():
    """Blocks of unlike depth and width, the class token as output, and logits."""
    register_classifiers(init_default_scope=False)
    torch.manual_seed(0)
    student, teacher = classifier(8, 2), classifier(12, 3)
    heads = [
        {'type': 'mmdfkd.LogitHead', 'ce_weight': 0.5},
        {'type': 'mmdfkd.FeatureHead'},
        {
            'type': 'mmdfkd.FeatureHead',
            'name': 'blocks',
            'taps_student': ['backbone.layers.0', 'backbone.layers.1'],
            'taps_teacher': ['backbone.layers.0', 'backbone.layers.2'],
            'loss': 'cosine',
        },
    ]
    losses, trained = step(student, teacher, heads, torch.rand(2, 3, 32, 32))
    assert set(losses) == {'loss_kl', 'loss_ce', 'loss_feature', 'loss_blocks_feature'}
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())
    assert [n for n, p in trained if p.grad is None] == []
