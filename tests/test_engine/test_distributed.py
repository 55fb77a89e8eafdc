"""Runs on several processes: a step there is the step of one process on all images."""

import json

import pytest
import toy
from mmengine.model import MMDistributedDataParallel
from tiny_runs import NO_VALIDATION, ROOT, TWO_STEPS, run_tool
from torch import distributed, nn

from mmdfkd.distillers import DataFreeDistiller
from mmdfkd.engine import DistillHook, DistributedDistiller
from mmdfkd.registry import MODELS
from mmdfkd.utils.checkpoint import read_checkpoint

# Answers alone, whose loss is a mean over the images, and steps in proportion to the gradient.
CONFIG = """
_base_ = {base!r}
model = dict(heads=[dict(type='mmdfkd.LogitHead')])
optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=0.5))
param_scheduler = []
"""
LAUNCH = """
import sys
from torch.distributed.run import main
main(['--standalone', '--nproc_per_node=2', *sys.argv[1:]])
"""


def test_two_processes_train_as_one(tmp_path):
    config = tmp_path / 'run.py'
    config.write_text(CONFIG.format(base=str(ROOT / 'configs' / 'dfkd_deit.py')))
    launch = tmp_path / 'launch.py'
    launch.write_text(LAUNCH)
    train = ROOT / 'tools' / 'train.py'
    shared = (*TWO_STEPS, *NO_VALIDATION, 'model.source.pool_size=16', 'model.source.num_workers=0')
    runs = dict(
        one=((train,), 'train_dataloader.batch_size=4'),
        two=((launch, train), 'train_dataloader.batch_size=2'),
    )
    for name, ((tool, *rest), batch) in runs.items():
        arguments = [*rest, config, '--work-dir', tmp_path / name]
        if rest:
            arguments += ['--launcher', 'pytorch']
        run_tool(tool, *arguments, cwd=tmp_path, options=(*shared, batch))
    start, one, two = (
        read_checkpoint(str(tmp_path / path))['state_dict']
        for path in ('one/student_start.pth', 'one/student.pth', 'two/student.pth')
    )
    moved = max(float((one[k] - start[k]).abs().max()) for k in one)
    apart = max(float((one[k] - two[k]).abs().max()) for k in one)
    assert moved > 1e-3 and apart < 1e-3 * moved
    facts = json.loads((tmp_path / 'two' / 'run.json').read_text())
    assert facts['train_images_read'] == 0 and facts['steps'] == 2


@pytest.fixture
def group(tmp_path):
    """A group of this process alone."""
    distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path / "group"}', rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_what_is_averaged(group, tmp_path):
    """The student and its heads' aligners; a generator averages its own gradients."""
    cfg = toy.run_config(tmp_path)['model']
    cfg['source'] = dict(type='mmdfkd.PresetGeneratorSource', preset='dafl', batch=2)
    distiller = MODELS.build(cfg)
    assert isinstance(distiller, DataFreeDistiller)
    wanted = {id(p) for p in distiller.student.parameters() if p.requires_grad}
    generator = list(distiller.source.parameters())
    assert wanted and generator
    for parameter in generator:
        # As in its own step.
        parameter.requires_grad_(True)
    # The Runner names a GPU, whether there is one or not.
    wrapper = DistributedDistiller(distiller, device_ids=[0])
    assert {id(p) for p in wrapper._module_parameters} == wanted
    with pytest.raises(TypeError, match='wraps a DataFreeDistiller, not a Linear'):
        DistributedDistiller(nn.Linear(2, 2))


def test_another_wrapper_is_refused(group, tmp_path, monkeypatch):
    """mmengine's never calls the distiller's step."""
    runner = toy.runner_of(toy.run_config(tmp_path))
    assert runner.train_loop is not None
    wrapped = MMDistributedDataParallel(runner.model)
    monkeypatch.setattr(runner, 'model', wrapped)
    (hook,) = (one for one in runner.hooks if isinstance(one, DistillHook))
    with pytest.raises(RuntimeError, match='Set model_wrapper_cfg'):
        hook.before_run(runner)
