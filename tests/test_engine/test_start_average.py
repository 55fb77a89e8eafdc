"""A student that goes back a part of the way: what is validated, saved and exported."""

import pytest
import torch
import toy
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmdfkd.engine.hooks import StartAverageHook


@HOOKS.register_module()
class LastStepHook(Hook):
    """Keeps the weights of the last step before anything is done to them, and the validated."""

    priority = 'VERY_HIGH'

    def _weights(self, runner):
        return {k: v.clone() for k, v in runner.model.student.net.state_dict().items()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.trained = self._weights(runner)

    def before_val_epoch(self, runner):
        self.validated = self._weights(runner)


def run(folder, name, *hooks, init='inherit', **changes):
    cfg = toy.run_config(folder, work_dir=str(folder / name), **changes)
    cfg['model']['student']['init'] = init
    cfg['custom_hooks'] = [*cfg['custom_hooks'], *hooks, dict(type='LastStepHook')]
    cfg['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
    cfg['default_hooks']['checkpoint']['interval'] = 2
    runner = toy.runner_of(cfg)
    runner.train()
    return next(h for h in runner.hooks if isinstance(h, LastStepHook))


def weights(folder, name, file):
    found = torch.load(folder / name / file, weights_only=False)['state_dict']
    return {k.removeprefix('student.net.'): v for k, v in found.items()}


OURS = dict(type='mmdfkd.StartAverageHook', share=0.75)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('average')


@pytest.fixture(scope='module')
def through(folder):
    return run(folder, 'run', OURS)


def test_the_mean_of_both_is_validated_saved_and_exported(folder, through):
    start = weights(folder, 'run', 'student_start.pth')
    moved = 0
    for file in ('student.pth', 'iter_4.pth'):
        found = weights(folder, 'run', file)
        for key, value in start.items():
            expected = 0.25 * value.double() + 0.75 * through.trained[key].double()
            torch.testing.assert_close(found[key].double(), expected, rtol=1e-5, atol=1e-7)
            moved += not torch.equal(found[key], value)
    assert moved
    student = weights(folder, 'run', 'student.pth')
    assert all(torch.equal(v, student[k]) for k, v in through.validated.items())
    # In between it trains as ever.
    plain = run(folder, 'plain')
    halfway = [weights(folder, name, 'iter_2.pth') for name in ('run', 'plain')]
    assert all(torch.equal(v, halfway[1][k]) for k, v in halfway[0].items())
    assert all(torch.equal(v, plain.trained[k]) for k, v in through.trained.items())


def test_resuming_ends_alike_and_needs_the_start(folder, through):
    last = dict(load_from=str(folder / 'run' / 'iter_2.pth'), resume=True)
    with pytest.raises(FileNotFoundError, match=r'student_start\.pth is not there'):
        run(folder, 'elsewhere', OURS, **last)
    start = folder / 'resumed' / 'student_start.pth'
    start.parent.mkdir()
    start.write_bytes((folder / 'run' / 'student_start.pth').read_bytes())
    run(folder, 'resumed', OURS, **last)
    student = weights(folder, 'resumed', 'student.pth')
    assert all(torch.equal(v, student[k]) for k, v in weights(folder, 'run', 'student.pth').items())


def test_a_random_start_is_left_as_trained(folder):
    last = run(folder, 'random', OURS, init='random')
    student = weights(folder, 'random', 'student.pth')
    assert all(torch.equal(v, student[k]) for k, v in last.trained.items())


def test_settings_that_make_no_sense(folder):
    for share in (0, 1, -0.5):
        with pytest.raises(ValueError, match=r'share must be in \(0, 1\)'):
            StartAverageHook(share)
    with pytest.raises(ValueError, match='exclude each other'):
        run(folder, 'both', OURS, dict(type='mmdfkd.StudentEMAHook'))
