"""The command-line tools run a config from anywhere and say what the toolbox says."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
import toy
from mmengine.config import Config
from mmengine.runner import Runner
from timm.models.vision_transformer import VisionTransformer

from mmdfkd.utils.key_report import CheckpointMismatchError
from mmdfkd.utils.launch import set_amp

ROOT = Path(__file__).resolve().parents[2]


def _tool(name):
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _call(monkeypatch, name, *args):
    """Run a tool in this process; returns what its Runner's train or test returned."""
    results = []
    with monkeypatch.context() as patch:
        for method in ('train', 'test'):
            own = getattr(Runner, method)
            patch.setattr(Runner, method, lambda self, own=own: results.append(own(self)))
        patch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
        _tool(name).main()
    return results[0]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Two steps, from a directory that is not the checkout's, by the tool itself."""
    folder = tmp_path_factory.mktemp('tools')
    cfg = toy.run_config(folder)
    cfg['experiment_name'] = 'tool'
    # Scores well enough to be compared.
    cfg['model']['student'] = dict(type='mmdfkd.Shrunk', width=1.0, depth=1.0, init='inherit')
    cfg['optim_wrapper']['optimizer']['lr'] = 1e-4
    del cfg['work_dir']
    toy.write_config(cfg, folder / 'small.py')
    elsewhere = folder / 'elsewhere'
    elsewhere.mkdir()
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), '../small.py']
    command += ['--cfg-options', 'train_cfg.max_iters=2', 'default_hooks.checkpoint.interval=1']
    done = subprocess.run(
        command,
        cwd=elsewhere,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_trains_from_another_directory(trained):
    """Settings are overridden; the work directory is named after the config."""
    run = trained / 'elsewhere' / 'work_dirs' / 'small'
    facts = json.loads((run / 'run.json').read_text())
    assert facts['steps'] == 2 and facts['threads'] == 1
    assert facts['command'].startswith('train.py ../small.py --cfg-options')
    assert facts['config'] == 'small.py'
    assert (run / 'student.pth').is_file() and (run / 'iter_2.pth').is_file()


def test_scores_are_the_toolboxs(trained, monkeypatch):
    run = trained / 'elsewhere' / 'work_dirs' / 'small'
    student = run / 'student.pth'
    by_tool = [
        _call(
            monkeypatch,
            'test',
            config,
            student,
            *('--work-dir', trained / 'tested', '--out', trained / 'found.pkl'),
            *('--cfg-options', f'experiment_name=tool_{i}'),
        )
        for i, config in enumerate([trained / 'small.py', run / 'student_config.py'])
    ]
    cfg = Config.fromfile(run / 'student_config.py')
    cfg.update(work_dir=str(trained / 'own'), load_from=str(student))
    own = toy.runner_of(cfg).test()
    assert by_tool[0] == by_tool[1] == own and own['coco/bbox_mAP'] > 0.01
    assert (trained / 'found.pkl').stat().st_size > 0


def test_weights_of_another_network_are_not_tested(trained, monkeypatch):
    """mmengine would load what fits, warn, and test the rest as it was drawn."""
    student = trained / 'elsewhere' / 'work_dirs' / 'small' / 'student_config.py'
    teacher = torch.load(trained / 'teacher.pth', weights_only=True)['state_dict']
    part = {key: value for key, value in teacher.items() if not key.startswith('roi_head')}
    torch.save(part, trained / 'part.pth')
    options = ('--work-dir', trained / 'part', '--cfg-options', 'experiment_name=tool_part')
    with pytest.raises(CheckpointMismatchError, match=r'part\.pth: .*\n.*\n.*roi_head'):
        _call(monkeypatch, 'test', student, trained / 'part.pth', *options)


def test_timms_names_are_tested(tmp_path, monkeypatch):
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2)
    peer = toy.randomise(VisionTransformer(**sizes, num_classes=5), 3).eval()
    torch.save(peer.state_dict(), tmp_path / 'timm.pth')
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for i, image in enumerate(images):
        (tmp_path / 'set' / f'{i}').mkdir(parents=True)
        cv2.imwrite(str(tmp_path / 'set' / f'{i}' / 'x.png'), image)
    cfg = toy.whole(toy.classifier_model(), 'mmpretrain')
    cfg.update(
        test_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(
                type='CustomDataset',
                data_root=str(tmp_path / 'set'),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
            ),
        ),
        test_cfg=dict(type='TestLoop'),
        test_evaluator=dict(type='Accuracy'),
        experiment_name='timms_names',
        work_dir=str(tmp_path / 'work'),
    )
    path = toy.write_config(cfg, tmp_path / 'vit.py')
    _call(monkeypatch, 'test', path, tmp_path / 'timm.pth', '--out', tmp_path / 'found.pkl')
    found = mmengine.load(tmp_path / 'found.pkl')
    pixels = torch.as_tensor(images[..., ::-1].copy()).permute(0, 3, 1, 2)
    pixels = (pixels - torch.tensor(toy.MEAN)[:, None, None]) / torch.tensor(toy.STD)[:, None, None]
    with torch.no_grad():
        wanted = peer(pixels).softmax(1)
    scores = torch.stack([sample['pred_score'] for sample in found])
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-4)


def test_resume_and_overwrite(trained, monkeypatch):
    run = trained / 'elsewhere' / 'work_dirs' / 'small'
    config = trained / 'small.py'
    steps = ('train_cfg.max_iters=3', 'default_hooks.checkpoint.interval=1')
    with pytest.raises(RuntimeError, match='--overwrite'):
        _call(monkeypatch, 'train', config, '--work-dir', run)
    assert (run / 'iter_2.pth').is_file()

    name = 'experiment_name=tool_resumed'
    _call(
        monkeypatch, 'train', config, '--work-dir', run, '--resume', '--cfg-options', name, *steps
    )
    assert json.loads((run / 'run.json').read_text())['steps'] == 3
    assert (run / 'iter_2.pth').is_file() and (run / 'iter_3.pth').is_file()

    name = 'experiment_name=tool_again'
    more = ('--overwrite', '--cfg-options', name, 'train_cfg.max_iters=1')
    _call(monkeypatch, 'train', config, '--work-dir', run, *more)
    assert json.loads((run / 'run.json').read_text())['steps'] == 1
    assert not (run / 'iter_3.pth').exists()


def test_amp_sets_every_optimiser(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    one = dict(type='OptimWrapper', optimizer=dict(type='SGD'))
    set_amp(one)
    assert one == dict(type='AmpOptimWrapper', optimizer=dict(type='SGD'), loss_scale='dynamic')
    several = dict(
        constructor='mmdfkd.Several',
        student=dict(optimizer=dict(type='SGD')),
        source=dict(type='OptimWrapper', optimizer=dict(type='Adam'), loss_scale=8.0),
    )
    set_amp(several)
    assert set(several) == {'constructor', 'student', 'source'}
    assert several['student']['type'] == several['source']['type'] == 'AmpOptimWrapper'
    assert (several['student']['loss_scale'], several['source']['loss_scale']) == ('dynamic', 8.0)
    with pytest.raises(ValueError, match='ApexOptimWrapper'):
        set_amp(dict(type='ApexOptimWrapper', optimizer=dict(type='SGD')))
