"""Which of mmdet's published configs an adapter takes: all of these families, but for two kinds."""

import warnings
from pathlib import Path

import mmdet
import pytest
import torch

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.distillers.networks import build_network, load_config

FOLDERS = dict(
    detr='DETR-like',
    conditional_detr='DETR-like',
    dab_detr='DETR-like',
    deformable_detr='DETR-like',
    dino='DETR-like',
    faster_rcnn='two-stage',
    mask_rcnn='two-stage',
    cascade_rcnn='two-stage',
    retinanet='one-stage',
    fcos='one-stage',
    gfl='one-stage',
    rtmdet='one-stage',
)
#: Masks of a one-stage detector; proposals of points in the place of anchors.
REFUSED = ('rtmdet-ins', 'faster-rcnn_r50_fpn_fcos-rpn')


@pytest.mark.slow
@pytest.mark.parametrize('folder', FOLDERS)
def test_every_config_is_taken_unchanged(folder, monkeypatch):
    """Built without memory for weights, so that size does not matter."""
    linspace = torch.linspace
    # Swin and ConvNeXt read their rates of stochastic depth from a tensor.
    monkeypatch.setattr(torch, 'linspace', lambda *a, **k: linspace(*a, **{**k, 'device': 'cpu'}))
    taken, refused = {}, []
    configs = Path(mmdet.__file__).parent / '.mim' / 'configs' / folder
    for path in sorted(configs.glob('*.py')):
        if path.stem.endswith('_tta'):
            continue
        cfg = load_config(f'mmdet::{folder}/{path.name}')
        with torch.device('meta'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            net = build_network(cfg)
        if path.stem.startswith(REFUSED):
            with pytest.raises(TypeError, match='No adapter runs'):
                build_adapter(net, Normalizer.from_config(cfg))
            refused.append(path.stem)
        else:
            taken[path.stem] = build_adapter(net, Normalizer.from_config(cfg)).family
    assert taken and set(taken.values()) == {FOLDERS[folder]}
    assert len(refused) == dict(rtmdet=5, faster_rcnn=1).get(folder, 0)
