"""What a user gets wrong ends in one message that names it, before anything is written."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import toy

from mmdfkd.utils.launch import fail_clearly

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a tool as the command line does: its status and what it says on stderr."""

    def run(name, *args):
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
        path = ROOT / 'tools' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(f'bad_{name}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        status = fail_clearly(module.main)
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def config(tmp_path):
    """Writes the toy run with changes to its model; returns the config's path."""
    count = iter(range(100))

    def write(change=None, **changes):
        i = next(count)
        cfg = toy.run_config(tmp_path, experiment_name=f'bad_{tmp_path.name}_{i}', **changes)
        if change is not None:
            change(cfg)
        return toy.write_config(cfg, tmp_path / f'bad{i}.py')

    return write


def assert_says(result, *words):
    status, message = result
    assert status == 1
    assert 'Traceback' not in message
    for word in words:
        assert word in message, message


def test_no_such_config(call, tmp_path):
    assert_says(call('train', tmp_path / 'nowhere.py'), 'nowhere.py')
    assert_says(call('test', tmp_path / 'nowhere.py', __file__), 'nowhere.py')


def test_a_config_that_is_no_python(call, tmp_path):
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    assert_says(call('train', tmp_path / 'broken.py'), 'SyntaxError', 'broken.py')


def test_settings_that_do_not_exist(call, config, tmp_path):
    def misspell(cfg):
        cfg['model']['teacher']['chekpoint'] = cfg['model']['teacher'].pop('checkpoint')

    assert_says(call('train', config(misspell)), 'model.teacher', "'chekpoint'", "'checkpoint'")

    def head(cfg):
        cfg['model']['heads'][0]['flor'] = 0.5

    assert_says(call('train', config(head)), 'PyramidHead', "'flor'", "'floor'")

    def hook(cfg):
        cfg['custom_hooks'][0]['every'] = 5

    assert_says(call('train', config(hook)), 'DistillHook', "'every'")
    assert not list(tmp_path.glob('run/*.pth'))


def test_no_such_teacher(call, config, tmp_path):
    def missing(cfg):
        cfg['model']['teacher']['checkpoint'] = str(tmp_path / 'away.pth')

    assert_says(call('train', config(missing)), 'FileNotFoundError', 'away.pth')

    def no_config(cfg):
        cfg['model']['teacher']['config'] = 'mmdet::no/such.py'

    assert_says(call('train', config(no_config)), 'mmdet::no/such.py')
    assert not list(tmp_path.glob('run/*.pth'))


def test_a_share_that_is_none(call, config):
    student = dict(type='mmdfkd.Shrunk', width=70)
    assert_says(call('train', config(model_student=student)), 'width=70', 'share')


def test_checkpoints(call, config, tmp_path):
    path = config()
    assert_says(call('test', path, tmp_path / 'away.pth'), 'There is no checkpoint', 'away.pth')
    assert_says(call('test', path, path, '--out', 'found.json'), '--out must end in .pkl')
    untested = config(test_evaluator=None)
    assert_says(call('test', untested, path, '--out', 'found.pkl'), 'has no test_evaluator')
    broken = tmp_path / 'broken.pth'
    broken.write_bytes(b'PK\x03\x04 not really')
    assert_says(call('test', path, broken), 'broken.pth')
    # The teacher's weights are no student's.
    assert_says(
        call('test', config(), tmp_path / 'teacher.pth'),
        'teacher.pth: student: the weights do not fit the network',
    )
    gone = ('--resume', tmp_path / 'gone.pth')
    assert_says(call('train', config(), *gone), 'gone.pth')


def test_a_set_that_is_not_there(call, config, tmp_path):
    def away(cfg):
        for stage in ('val', 'test'):
            cfg[f'{stage}_dataloader']['dataset']['data_root'] = str(tmp_path / 'away')

    told = (str(tmp_path / 'away'), 'looked from', '--cfg-options', 'tools/dataset_converters')
    assert_says(call('train', config(away)), 'val_dataloader.dataset.', 'val_cfg=None', *told)
    assert not (tmp_path / 'run').exists()
    checkpoint = tmp_path / 'teacher.pth'
    assert_says(call('test', config(away), checkpoint), 'test_dataloader.dataset.', *told)


@pytest.mark.skipif(torch.cuda.is_available(), reason='about machines without a GPU')
def test_amp_without_a_gpu(call, config):
    assert_says(call('train', config(), '--amp'), '--amp needs a GPU')


def test_scaling_without_a_base(call, config):
    assert_says(call('train', config(), '--auto-scale-lr'), 'base_batch_size')


def test_the_trace_is_there_on_demand(call, config, monkeypatch, tmp_path):
    monkeypatch.setenv('MMDFKD_TRACE', '1')
    status, message = call('train', tmp_path / 'nowhere.py')
    assert status == 1 and 'Traceback' in message
