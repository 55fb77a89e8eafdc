"""A network gets the same input from the house's pixels as from its own loader and preprocessor."""

import numpy as np
import pytest
import torch
import toy
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmpretrain.models import ClsDataPreprocessor

from mmdfkd.adapters import Normalizer

MEAN, STD = [10.0, 100.0, 200.0], [50.0, 60.0, 70.0]


def _pixels(h=20, w=28):
    """Whole grey levels ``[3, H, W]``, and the same in [0, 1]."""
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, h, w), dtype=np.uint8))
    return rgb, rgb[None].float() / 255


def _loader(**step):
    step = dict(dict(type='LoadImageFromFile'), **step)
    return dict(dataset=dict(type='CocoDataset', pipeline=[step]))


@pytest.mark.parametrize('flip', [True, False])
@pytest.mark.parametrize('divisor', [1, 16])
def test_equals_mmdets_preprocessor(flip, divisor):
    """mmcv's loader gives BGR; ``bgr_to_rgb=False`` (RTMDet) leaves it so."""
    pre = dict(mean=MEAN, std=STD, bgr_to_rgb=flip, pad_size_divisor=divisor, pad_value=3)
    rgb, images = _pixels()
    sample = DetDataSample(metainfo=dict(img_shape=(20, 28)))
    data = dict(inputs=[rgb.flip(0)], data_samples=[sample])
    expected = DetDataPreprocessor(**pre)(data, False)['inputs']
    cfg = dict(model=dict(data_preprocessor=pre), test_dataloader=_loader())
    own = Normalizer.from_config(cfg)(images)
    assert own.shape == expected.shape
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ('dataset', 'to_rgb', 'order'),
    [
        (dict(type='ImageNet', pipeline=[dict(type='LoadImageFromFile')]), True, 'bgr'),
        (dict(type='ImageNet', pipeline=[dict(type='LoadImageFromFile')]), False, 'bgr'),
        # Its loader gives RGB, and its configs say to_rgb=False: a guess from that alone is wrong.
        (dict(type='CIFAR10', pipeline=[dict(type='PackInputs')]), False, 'rgb'),
        (dict(type='mmpretrain.CIFAR100', pipeline=[]), False, 'rgb'),
        (dict(type='RepeatDataset', dataset=dict(type='CIFAR10', pipeline=[])), False, 'rgb'),
    ],
)
def test_equals_mmpretrains_preprocessor(dataset, to_rgb, order):
    pre = dict(mean=MEAN, std=STD, to_rgb=to_rgb, pad_size_divisor=8)
    rgb, images = _pixels()
    loaded = rgb if order == 'rgb' else rgb.flip(0)
    expected = ClsDataPreprocessor(**pre)(dict(inputs=[loaded]), False)['inputs']
    cfg = dict(data_preprocessor=pre, model={}, test_dataloader=dict(dataset=dataset))
    own = Normalizer.from_config(cfg)(images)
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


def test_the_loaders_order_can_be_set_by_hand():
    cfg = dict(model=dict(data_preprocessor=dict(mean=MEAN, std=STD)), test_dataloader=_loader())
    assert Normalizer.from_config(cfg).order == 'bgr'
    assert Normalizer.from_config(cfg, 'rgb').order == 'rgb'


def test_the_models_own_preprocessor_replaces_the_top_level_one():
    """As in the Runner, which does not mix the two."""
    model = dict(data_preprocessor=dict(type='X', bgr_to_rgb=True))
    cfg = Config(dict(data_preprocessor=dict(mean=MEAN, std=STD), model=model))
    own = Normalizer.from_config(cfg)
    assert own.mean.flatten().tolist() == [0, 0, 0] and own.order == 'rgb'


def test_gradient_and_precision():
    images = toy.images(1).double().requires_grad_()
    normalizer = Normalizer(MEAN, STD, 'bgr', 32)
    out = normalizer(images)
    assert out.dtype == torch.float64 and out.shape[-2:] == (64, 64)
    (grad,) = torch.autograd.grad(out.sum(), images)
    expected = 255 / torch.tensor(STD).flip(0).view(3, 1, 1).double()
    torch.testing.assert_close(grad[0], expected.expand_as(grad[0]))


def test_a_wrong_order_is_refused():
    with pytest.raises(ValueError, match="'rgb' or 'bgr'"):
        Normalizer(MEAN, STD, 'gbr')


@pytest.mark.parametrize('flip', [True, False])
def test_an_unknown_order_is_refused(flip):
    cfg = dict(model=dict(data_preprocessor=dict(bgr_to_rgb=flip)))
    with pytest.raises(ValueError, match="'auto', 'rgb' or 'bgr', not 'RGB'"):
        Normalizer.from_config(cfg, 'RGB')
