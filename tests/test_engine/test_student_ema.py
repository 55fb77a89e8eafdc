"""An averaged student is what is validated, saved, resumed and exported."""

import pytest
import torch
import toy
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmdfkd.engine.hooks import StudentEMAHook

SHARE = 0.25


@HOOKS.register_module()
class WeightWatchHook(Hook):
    """Keeps the trained weights after each step, and those that are validated."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.steps, self.validated = [], None

    def _weights(self, runner):
        return {k: v.clone() for k, v in runner.model.student.net.state_dict().items()}

    def before_train(self, runner):
        self.start = self._weights(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps.append(self._weights(runner))

    def before_val_epoch(self, runner):
        self.validated = self._weights(runner)


def run(folder, hook, name, **changes):
    # Balanced by gradients, too, whose averages a resumed run has to go on with.
    changes['model_balance'] = dict(every=3)
    cfg = toy.run_config(folder, work_dir=str(folder / name), **changes)
    cfg['custom_hooks'] = [*cfg['custom_hooks'], hook, dict(type='WeightWatchHook')]
    cfg['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
    cfg['default_hooks']['checkpoint']['interval'] = 2
    runner = toy.runner_of(cfg)
    runner.train()
    return next(h for h in runner.hooks if isinstance(h, WeightWatchHook))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('ema')


OURS = dict(type='mmdfkd.StudentEMAHook', momentum=SHARE)


@pytest.fixture(scope='module')
def through(folder):
    return run(folder, OURS, 'run')


def exported(folder, name):
    return torch.load(folder / name / 'student.pth', weights_only=True)['state_dict']


def average(steps):
    """By hand: the first step's weights, then a quarter of each new one."""
    mean = {k: v.double() for k, v in steps[0].items()}
    for weights in steps[1:]:
        mean = {k: (1 - SHARE) * v + SHARE * weights[k].double() for k, v in mean.items()}
    return mean


def test_the_average_is_exported_validated_and_saved(folder, through):
    expected = average(through.steps)
    files = torch.load(folder / 'run' / 'iter_4.pth', weights_only=False)
    student = exported(folder, 'run')
    for found in (student, through.validated, files['state_dict']):
        assert set(found) == set(expected)
        for key, value in found.items():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-6, atol=1e-8)
    moved = [k for k, v in student.items() if not torch.equal(v, through.steps[-1][k])]
    assert len(moved) > len(student) / 2
    # Nothing of heads or source is averaged.
    assert set(files['ema_state_dict']) == {'steps', *(f'module.{k}' for k in student)}
    start = torch.load(folder / 'run' / 'student_start.pth', weights_only=True)['state_dict']
    assert all(torch.equal(v, through.start[k]) for k, v in start.items())


def test_resuming_equals_going_through(folder, through):
    last = str(folder / 'run' / 'iter_2.pth')
    watch = run(folder, OURS, 'resumed', load_from=last, resume=True)
    assert all(torch.equal(v, through.steps[-1][k]) for k, v in watch.steps[-1].items())
    norms = [
        torch.load(folder / name / 'iter_4.pth', weights_only=False)['dfkd_state']['balance'][
            'norms'
        ]
        for name in ('run', 'resumed')
    ]
    assert (norms[0] > 0).all() and torch.equal(*norms)
    before, after = exported(folder, 'run'), exported(folder, 'resumed')
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_mmengines_own_hook_is_exported_too(folder):
    watch = run(folder, dict(type='EMAHook', momentum=SHARE), 'theirs')
    expected = average(watch.steps)
    for key, value in exported(folder, 'theirs').items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-6, atol=1e-8)


def test_a_misspelt_option_is_refused_when_built():
    with pytest.raises(TypeError, match=r"'begin_iters' \(did you mean 'begin_iter'"):
        StudentEMAHook(begin_iters=3)
    with pytest.raises(TypeError, match=r"'gamma'"):
        StudentEMAHook(gamma=100)
    mean = StudentEMAHook(ema_type='StochasticWeightAverage', interval=2)
    assert mean.ema_cfg == dict(type='StochasticWeightAverage', interval=2)
    annealed = StudentEMAHook(ema_type='MomentumAnnealingEMA', gamma=100, begin_iter=2)
    assert annealed.ema_cfg == dict(type='MomentumAnnealingEMA', gamma=100, momentum=0.01)
