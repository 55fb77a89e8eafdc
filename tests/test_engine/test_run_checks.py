"""Runs that would go wrong silently are refused before the first image is made."""

import pytest
import torch
import toy
from mmengine.config import Config

from mmdfkd.distillers import load_config
from mmdfkd.engine.run_checks import _schedulers


def refused(cfg, folder, match):
    with pytest.raises(ValueError, match=match):
        toy.runner_of(cfg).train()
    assert not list((folder / 'run').glob('*.pth'))


def test_epochs_of_synthetic_images_never_end(tmp_path):
    cfg = toy.run_config(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=2))
    refused(cfg, tmp_path, 'counts epochs, and synthetic images have none.*IterBasedTrainLoop')


def test_a_schedule_that_never_steps(tmp_path):
    cfg = toy.run_config(tmp_path)
    steps = dict(type='MultiStepLR', by_epoch=True, milestones=[1, 2])
    cfg['param_scheduler'] = [*cfg['param_scheduler'], steps]
    refused(cfg, tmp_path, 'A MultiStepLR of param_scheduler counts epochs')


def test_schedules_of_several_optimisers():
    assert list(_schedulers(dict(a=[1, 2], b=3))) == [1, 2, 3]
    assert list(_schedulers([1, 2])) == [1, 2] and not list(_schedulers(None))


def test_checkpoints_by_epoch_are_told(tmp_path):
    cfg = toy.run_config(tmp_path, log_level='WARNING')
    cfg['train_cfg']['max_iters'] = 1
    cfg['default_hooks']['checkpoint'] = dict(type='CheckpointHook', interval=1)
    runner = toy.runner_of(cfg)
    said = []
    runner.logger.warning = said.append
    runner.train()
    assert any('nothing is saved before its end' in line for line in said)


def test_batches_by_aspect_ratio(tmp_path):
    """As mmdet's base config of COCO has them."""
    cfg = toy.run_config(tmp_path)
    cfg['train_dataloader']['batch_sampler'] = dict(type='AspectRatioBatchSampler')
    refused(cfg, tmp_path, 'batch_sampler is a AspectRatioBatchSampler.*None')


def test_load_from_is_no_start(tmp_path):
    cfg = toy.run_config(tmp_path, load_from=str(tmp_path / 'teacher.pth'))
    refused(cfg, tmp_path, r'set model\.student\.init')


def test_a_dataset_source_of_another_order(tmp_path):
    cfg = toy.run_config(tmp_path, model_data_free=False)
    cfg['model'].update(source=dict(type='mmdfkd.DatasetSource', order='rgb'), image_size=48)
    cfg['train_dataloader'] = dict(
        toy.coco_loader(tmp_path / 'data'), batch_size=2, sampler=dict(type='InfiniteSampler')
    )
    refused(cfg, tmp_path, "delivers BGR images, and the DatasetSource takes them for RGB.*'bgr'")


def loading(order):
    """A test set whose images are of a channel order."""
    step = dict(type='LoadImageFromFile', channel_order=order)
    return dict(dataset=dict(type='CocoDataset', pipeline=[step]))


def test_a_network_is_distilled_as_it_is_tested(tmp_path):
    cfg = toy.run_config(tmp_path)
    cfg['model']['teacher']['config']['test_dataloader'] = loading('rgb')
    refused(cfg, tmp_path, "val_dataloader delivers BGR images and those of the teacher's own")
    # What is said of a network is taken as it is.
    cfg['model']['teacher']['input_order'] = 'bgr'
    cfg['train_cfg']['max_iters'] = 1
    toy.runner_of(cfg).train()


def test_an_inline_student_has_the_order_of_the_teachers_images(tmp_path):
    cfg = toy.run_config(tmp_path)
    teacher, student = cfg['model']['teacher'], toy.whole(toy.detector_model())
    teacher['config']['test_dataloader'] = loading('rgb')
    cfg['model']['student'] = dict(config=student, init='random')

    def orders():
        model = toy.runner_of(cfg).model
        return model.teacher.adapter.normalizer.order, model.student.adapter.normalizer.order

    # The preprocessor swaps what is loaded.
    assert orders() == ('bgr', 'bgr')
    student['test_dataloader'] = loading('bgr')
    assert orders() == ('bgr', 'rgb')
    cfg['model']['student']['input_order'] = 'rgb'
    assert orders() == ('bgr', 'bgr')
    teacher['input_order'] = 'bgr'
    del cfg['model']['student']['input_order'], student['test_dataloader']
    assert orders() == ('rgb', 'rgb')


def test_a_pipeline_that_normalises_is_refused(tmp_path):
    cfg = toy.run_config(tmp_path)
    teacher = cfg['model']['teacher']['config']
    del teacher['model']['data_preprocessor']
    steps = [dict(type='Normalize', mean=[1.0] * 3, std=[2.0] * 3, to_rgb=True)]
    teacher['test_dataloader'] = dict(dataset=dict(type='CocoDataset', pipeline=steps))
    with pytest.raises(ValueError, match='pipeline of the config normalises .* has no mean'):
        toy.runner_of(cfg)


def test_classes_that_only_the_checkpoint_names(tmp_path):
    cfg = toy.run_config(tmp_path)
    path = tmp_path / 'teacher.pth'
    content = torch.load(path, weights_only=False)
    for meta in (dict(dataset_meta=dict(classes=toy.CLASSES[::-1])), dict(CLASSES=('bar', 'x'))):
        torch.save(dict(content, meta=meta), path)
        if 'CLASSES' in meta:
            # Of another number: of something else.
            cfg['train_cfg']['max_iters'] = 1
            toy.runner_of(cfg).train()
        else:
            refused(cfg, tmp_path, "classes in another order: class 0 is 'disc' there and 'bar'")


LAZY = """
from mmpretrain.datasets import CIFAR10
from mmpretrain.models import ImageClassifier, VisionTransformer, VisionTransformerClsHead

arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3),
    backbone=dict(type=VisionTransformer, arch=arch, img_size=32, patch_size=8),
    head=dict(type=VisionTransformerClsHead, num_classes=10, in_channels=24),
)
test_dataloader = dict(dataset=dict(type=CIFAR10, data_root='x', pipeline=[]))
default_scope = 'mmpretrain'
"""


@pytest.mark.parametrize('inline', [False, True])
def test_configs_whose_types_are_classes(tmp_path, inline):
    """mmengine's pure Python style; what a run writes of them is read again."""
    path = tmp_path / 'lazy.py'
    path.write_text(LAZY)
    if inline:
        scope = {}
        exec(LAZY, scope)
        teacher = {k: scope[k] for k in ('model', 'test_dataloader', 'default_scope')}
    else:
        teacher = str(path)
    net = toy.build(load_config(teacher).model.to_dict(), scope='mmpretrain')
    torch.save(net.state_dict(), tmp_path / 'lazy.pth')
    cfg = toy.run_config(tmp_path, val_dataloader=None, val_evaluator=None, val_cfg=None)
    del cfg['test_dataloader'], cfg['test_evaluator'], cfg['test_cfg']
    cfg['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=1)
    cfg['model'].update(
        teacher=dict(config=teacher, checkpoint=str(tmp_path / 'lazy.pth')),
        student=dict(type='mmdfkd.Shrunk', width=0.5, depth=1.0),
        heads=[dict(type='mmdfkd.LogitHead')],
        image_size=32,
    )
    data = cfg['train_dataloader']['dataset']
    data.update(image_size=32)
    del data['metainfo']
    runner = toy.runner_of(cfg)
    # CIFAR's images are RGB, and the preprocessor leaves them.
    assert runner.model.teacher.adapter.normalizer.order == 'rgb'
    runner.train()
    for name in ('teacher_config.py', 'student_config.py'):
        written = Config.fromfile(tmp_path / 'run' / name)
        toy.plain(written.model.to_dict(), 'mmpretrain')
