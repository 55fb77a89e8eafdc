"""From a config reference to a network."""

import pytest
import torch
import toy
from mmengine.config import Config

from mmdfkd.distillers import build_network, load_config, model_config
from mmdfkd.distillers.networks import silent_norms, without_files
from mmdfkd.distillers.student_spec import student_config


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.py'):
        load_config(tmp_path / 'nowhere.py')
    with pytest.raises(FileNotFoundError, match='mmdet::no/such.py'):
        load_config('mmdet::no/such.py')
    with pytest.raises(KeyError, match="no 'model'"):
        load_config(dict(default_scope='mmdet'))


def test_a_config_inside_a_package():
    cfg = load_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    assert cfg.model.type == 'FasterRCNN'


def test_the_top_level_preprocessor_is_merged_and_nothing_is_shared():
    inline = dict(model=dict(type='X'), data_preprocessor=dict(mean=[1.0]))
    cfg = load_config(inline)
    model = model_config(cfg)
    assert model.data_preprocessor.mean == [1.0]
    model.data_preprocessor.mean.append(2.0)
    assert inline['data_preprocessor']['mean'] == [1.0]
    assert cfg.data_preprocessor.mean == [1.0]


def test_only_what_reads_a_file_is_removed():
    pretrained, normal = dict(type='Pretrained', checkpoint='x'), dict(type='Normal', std=0.5)
    cfg = dict(
        init_cfg=pretrained,
        a=dict(init_cfg=normal, pretrained='torchvision://resnet50'),
        b=[dict(init_cfg=[normal, pretrained])],
        c=dict(init_cfg=None),
    )
    left = without_files(cfg)
    assert left.to_dict() == dict(
        a=dict(init_cfg=normal), b=[dict(init_cfg=[normal])], c=dict(init_cfg=None)
    )
    assert cfg['init_cfg'] is pretrained


def test_a_network_is_built_without_its_downloads():
    net = build_network(Config(toy.whole(toy.resnet_model())))
    # Its own way to draw random weights is left.
    inits = [getattr(m, 'init_cfg', None) for m in net.modules()]
    assert 'Pretrained' not in str(inits) and 'Kaiming' in str(net.backbone.init_cfg)
    net.init_weights()
    kept = build_network(Config(toy.whole(toy.resnet_model())), keep_init=True)
    assert kept.backbone.init_cfg['checkpoint'] == 'torchvision://resnet18'


@pytest.mark.skipif(torch.cuda.is_available(), reason='SyncBN runs on a GPU')
def test_sync_bn_becomes_bn_on_a_cpu():
    model = toy.resnet_model()
    model['backbone']['norm_cfg'] = dict(type='SyncBN')
    net = build_network(Config(toy.whole(model)))
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in net.modules())


def test_a_student_is_either_shrunk_or_given():
    teacher = load_config(toy.whole(toy.detector_model()))
    with pytest.raises(ValueError, match='takes either'):
        student_config(dict(width=0.5), teacher)
    with pytest.raises(ValueError, match='takes either'):
        student_config(dict(type='mmdfkd.Shrunk', config={}), teacher)
    with pytest.raises(ValueError, match="unknown type 'mmdfkd.Srunk'"):
        student_config(dict(type='mmdfkd.Srunk'), teacher)
    shrunk = student_config(dict(type='mmdfkd.Shrunk', width=0.5, depth=0.5), teacher)
    assert shrunk.model.backbone.arch.num_layers == 1
    assert shrunk.default_scope == 'mmdet'
    assert teacher.model.backbone.arch.num_layers == 2


@pytest.mark.parametrize('trained', [True, False])
def test_branches_that_never_speak_are_found(trained):
    """Random weights of a published ResNet: its norms fixed, the last of each block at zero."""
    model = toy.resnet_model()
    model['backbone']['norm_cfg'] = dict(type='BN', requires_grad=trained)
    net = build_network(Config(toy.whole(model)))
    assert silent_norms(net) == []
    net.init_weights()
    assert silent_norms(net)[:1] == ([] if trained else ['backbone.layer1.0.bn2'])
