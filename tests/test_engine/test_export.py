"""What a run leaves behind is an ordinary student of mmdet."""

import json

import numpy as np
import pytest
import torch
import toy
from mmengine.config import Config

from mmdfkd.engine.hooks.export import ordinary_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A finished run of two steps; its teacher's file is gone."""
    folder = tmp_path_factory.mktemp('export')
    cfg = toy.run_config(folder)
    # Scores well enough to be compared to the last digit.
    cfg['model']['student'] = dict(type='mmdfkd.Shrunk', width=1.0, depth=1.0, init='inherit')
    cfg['optim_wrapper']['optimizer']['lr'] = 1e-4
    cfg['train_cfg']['max_iters'] = 2
    cfg['default_hooks']['checkpoint']['interval'] = 2
    toy.runner_of(cfg).train()
    (folder / 'teacher.pth').unlink()
    toy.write_config(cfg, folder / 'config.py')
    return folder


def _tested(cfg, checkpoint, folder):
    cfg = Config.fromfile(cfg)
    cfg.update(work_dir=str(folder / 'test'), load_from=str(checkpoint), log_level='ERROR')
    return toy.runner_of(cfg).test()


def test_files(folder):
    names = {p.name for p in (folder / 'run').iterdir()}
    assert {
        'student.pth',
        'student_start.pth',
        'student_config.py',
        'teacher_config.py',
        'synthetic_samples.pth',
        'run.json',
    } <= names


def test_the_student_is_tensors_only(folder):
    content = torch.load(folder / 'run' / 'student.pth', weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert all(isinstance(v, torch.Tensor) for v in content['state_dict'].values())
    assert content['meta']['dataset_meta']['classes'] == list(toy.CLASSES)
    assert (content['meta']['iter'], content['meta']['seed']) == (2, 3)
    start = torch.load(folder / 'run' / 'student_start.pth', weights_only=True)
    assert set(start['state_dict']) == set(content['state_dict'])
    assert any(not torch.equal(v, start['state_dict'][k]) for k, v in content['state_dict'].items())


def test_samples_are_images(folder):
    images = torch.load(folder / 'run' / 'synthetic_samples.pth', weights_only=True)
    images = images['state_dict']['images']
    assert images.dtype == torch.uint8 and images.shape == (36, 3, 48, 48)
    assert images.float().std() > 10


def test_one_score_whichever_way_it_is_tested(folder):
    """The run's config with its checkpoint or the student, and the student's own config."""
    run = folder / 'run'
    scores = [
        _tested(folder / 'config.py', run / 'iter_2.pth', folder),
        _tested(folder / 'config.py', run / 'student.pth', folder),
        _tested(run / 'student_config.py', run / 'student.pth', folder),
    ]
    assert 0.01 < scores[0]['coco/bbox_mAP'] < 1
    assert scores[0] == scores[1] == scores[2]


def test_the_configs_are_the_toolboxes_own(folder):
    for name in ('student', 'teacher'):
        cfg = Config.fromfile(folder / 'run' / f'{name}_config.py')
        assert cfg.model.type == 'FasterRCNN' and cfg.default_scope == 'mmdet'
        assert cfg.custom_imports.imports == ['mmdfkd.models']
        net = toy.plain(cfg.model)
    # The last is the teacher: what the student was scored against can be scored likewise.
    assert sum(p.numel() for p in net.parameters()) > 0


def test_mmdets_inferencer_runs_it(folder):
    from mmdet.apis import DetInferencer

    run = folder / 'run'
    inferencer = DetInferencer(
        str(run / 'student_config.py'), str(run / 'student.pth'), device='cpu', show_progress=False
    )
    image = (toy.images(1, seed=7)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    found = inferencer(image[..., ::-1].copy(), no_save_vis=True)['predictions'][0]
    assert len(found['scores']) > 0
    assert list(inferencer.model.dataset_meta['classes']) == list(toy.CLASSES)


def test_facts_of_the_run(folder):
    facts = json.loads((folder / 'run' / 'run.json').read_text())
    assert facts['steps'] == 2 and facts['seed'] == 3 and facts['init'] == 'inherit'
    assert facts['train_images_read'] == 0 and facts['uses_external_weights'] is False
    assert facts['dataset_classes'] == list(toy.CLASSES)
    assert facts['inheritance'] is not None and facts['seconds'] > 0
    # The toy's images are rendered as they are loaded.
    assert 0 <= facts['synthesis_seconds'] < facts['seconds']


def test_a_student_of_mmdet_alone_needs_nothing_of_this_project(tmp_path):
    """And a run without validation ends well."""
    cfg = toy.run_config(tmp_path)
    cfg['model']['student'] = dict(config=toy.whole(toy.resnet_model()), init='random')
    cfg['train_dataloader']['dataset']['metainfo'] = {}
    cfg['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=1)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    toy.runner_of(cfg).train()
    text = (tmp_path / 'run' / 'student_config.py').read_text()
    assert 'mmdfkd' not in text and 'custom_imports' not in text
    score = _tested(
        tmp_path / 'run' / 'student_config.py', tmp_path / 'run' / 'student.pth', tmp_path
    )
    assert 'coco/bbox_mAP' in score
    facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert facts['dataset_classes'] == [] and facts['uses_external_weights'] is False


def test_the_students_own_imports_are_kept():
    own = Config(toy.whole(toy.resnet_model()))
    own.custom_imports = dict(imports=['their.backbones', 'mmdfkd'])
    cfg = ordinary_config(own, Config(dict(default_scope='mmdet')))
    assert cfg.custom_imports.imports == ['their.backbones']
