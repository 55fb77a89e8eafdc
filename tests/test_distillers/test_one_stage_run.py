"""A published RTMDet, SyncBN and all, in a whole run: two steps, a test, the export."""

import torch
import toy

from mmdfkd.adapters import OneStageAdapter
from mmdfkd.distillers.networks import load_config


def test_two_steps_and_a_test(tmp_path):
    model = load_config(f'mmdet::{toy.ONE_STAGE["rtmdet"]}').model.to_dict()
    assert model['backbone']['norm_cfg']['type'] == 'SyncBN'
    # The toy set has three classes and images of 48 px; RTMDet's pyramid wants multiples of 32.
    model['bbox_head']['num_classes'] = 3
    model['data_preprocessor']['pad_size_divisor'] = 32
    net = toy.build(model)
    torch.save(dict(meta={}, state_dict=net.state_dict()), tmp_path / 'rtmdet.pth')
    toy.write_coco(tmp_path / 'data', None)
    cfg = toy.run_config(
        tmp_path,
        model_teacher=dict(config=toy.whole(model), checkpoint=str(tmp_path / 'rtmdet.pth')),
        model_student=dict(config=toy.whole(toy.one_stage_model('rtmdet', 96)), init='random'),
        model_heads=[
            dict(type='mmdfkd.PyramidHead'),
            dict(type='mmdfkd.DenseResponseHead'),
            dict(type='mmdfkd.CrossKDHead', convs=1),
        ],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2),
        param_scheduler=None,
    )
    cfg['model']['student']['config']['model']['data_preprocessor']['pad_size_divisor'] = 32
    runner = toy.runner_of(cfg)
    distiller = runner.model
    assert isinstance(distiller.teacher.adapter, OneStageAdapter) and distiller.frozen == []
    before = {k: v.clone() for k, v in distiller.student.net.state_dict().items()}
    runner.train()
    still = [n for n, p in distiller.student.net.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    exported = torch.load(tmp_path / 'run' / 'student.pth', weights_only=True)['state_dict']
    assert set(exported) == set(before)
