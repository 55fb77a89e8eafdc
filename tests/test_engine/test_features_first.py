"""What follows the backbone stays as it was for the first part of a run, and moves afterwards."""

import copy

import pytest
import torch
import toy
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmdfkd.engine import FeaturesFirstHook

PARTS = ('neck.', 'rpn_head.', 'roi_head.')
BLOCK = dict(type='mmdfkd.BlockHead', schedule=dict(begin=0, end=2, start=1.0, stop=0.0))
HEADS = [
    dict(type='mmdfkd.PyramidHead'),
    dict(type='mmdfkd.RPNResponseHead'),
    dict(type='mmdfkd.RoIResponseHead'),
]


@HOOKS.register_module()
class PhaseWatchHook(Hook):
    """Keeps what each step started from and reported."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.weights, self.losses, self.training, self.answers = [], [], [], []

    def before_train(self, runner):
        adapter = runner.model.student.adapter
        answer = adapter.answer

        def counted(*arguments):
            self.answers.append(runner.iter)
            return answer(*arguments)

        adapter.answer = counted

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.weights.append({k: v.clone() for k, v in runner.model.state_dict().items()})
        net = runner.model.student.net
        self.training.append((net.backbone.training, net.neck.training, net.roi_head.training))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({k for k in outputs if k.startswith('loss_')})


@HOOKS.register_module()
class HeldNeckHook(Hook):
    """The same by hand: a neck without gradients."""

    def before_train(self, runner):
        runner.model.student.net.neck.requires_grad_(False)


def _config(folder, hooks=(), **changes):
    settings = dict(model_heads=[BLOCK, *HEADS])
    settings['model_student'] = dict(type='mmdfkd.Shrunk', width=0.5, depth=0.5, init='inherit')
    cfg = toy.run_config(folder, **{**settings, **changes})
    cfg['custom_hooks'] = [*cfg['custom_hooks'], *hooks]
    # Such that weight decay alone would show.
    cfg['optim_wrapper']['optimizer']['weight_decay'] = 0.1
    cfg['default_hooks']['checkpoint']['interval'] = 2
    return cfg


FIRST = dict(type='mmdfkd.FeaturesFirstHook', until=0.5)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('features_first')


@pytest.fixture(scope='module')
def through(folder):
    """Six steps, three of them the first part, and what was watched."""
    hooks = [FIRST, dict(type='PhaseWatchHook')]
    runner = toy.runner_of(_config(folder, hooks, log_level='INFO'))
    runner.train()
    runner.watch = next(h for h in runner.hooks if isinstance(h, PhaseWatchHook))
    return runner


def test_parts_are_bit_equal_until_the_switch_and_move_afterwards(through):
    weights = [*through.watch.weights, through.model.state_dict()]
    parts = [k for k in weights[0] if k.startswith(PARTS)]
    assert {k.split('.')[0] + '.' for k in parts} == set(PARTS)
    for step in (1, 2, 3):
        assert all(torch.equal(weights[step][k], weights[0][k]) for k in parts)
    for step in range(6):
        moved = [k for k in weights[0] if not torch.equal(weights[step][k], weights[step + 1][k])]
        backbone = [k for k in weights[0] if k.startswith('backbone.')]
        assert len(set(moved) & set(backbone)) > 0.9 * len(backbone)
        if step >= 3:
            assert {k.split('.')[0] + '.' for k in moved if k in parts} == set(PARTS)
    assert all(p.requires_grad for p in through.model.student.parameters())
    assert not any(head.resting for head in through.model.student.heads)


def test_heads_rest_and_wake(through):
    responses = {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_roi_cls', 'loss_roi_bbox'}
    watch = through.watch
    # The block head's schedule ends at iteration 2.
    assert watch.losses[:3] == [{'loss_block', 'loss_pyramid'}] * 2 + [{'loss_pyramid'}]
    assert watch.losses[3:] == [{'loss_pyramid', *responses}] * 3
    # The student is asked for none of its answers.
    assert watch.answers == [3, 4, 5]
    assert watch.training == [(True, False, False)] * 3 + [(True, True, True)] * 3


def test_the_switch_is_logged_once(folder, through):
    log = next((folder / 'run').glob('*/*.log')).read_text()
    lines = [line for line in log.splitlines() if 'Features first' in line]
    assert len(lines) == 2
    assert 'neck, rpn_head, roi_head fixed until iteration 3; 2 of 4' in lines[0]
    assert 'end to end from iteration 3' in lines[1]


def test_the_first_part_is_a_run_of_the_pyramid_alone(folder, through):
    """Bit for bit: what rests has no influence, on the gradients' norm either."""
    cfg = _config(
        folder,
        [dict(type='HeldNeckHook'), dict(type='PhaseWatchHook')],
        model_heads=[BLOCK, HEADS[0]],
        work_dir=str(folder / 'alone'),
    )
    runner = toy.runner_of(cfg)
    runner.train()
    watch = next(h for h in runner.hooks if isinstance(h, PhaseWatchHook))
    for step in range(4):
        ours, theirs = through.watch.weights[step], watch.weights[step]
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), step


@pytest.mark.parametrize('step', [2, 4])
def test_resuming_equals_going_through(folder, through, step):
    """From within the first part, and from behind it."""
    cfg = _config(
        folder,
        [FIRST],
        work_dir=str(folder / f'resumed{step}'),
        load_from=str(folder / 'run' / f'iter_{step}.pth'),
        resume=True,
    )
    toy.runner_of(cfg).train()
    a, b = (
        torch.load(folder / run / 'iter_6.pth', weights_only=False)
        for run in ('run', f'resumed{step}')
    )
    assert all(torch.equal(a['state_dict'][k], b['state_dict'][k]) for k in a['state_dict'])
    heads = [c['dfkd_state']['heads'] for c in (a, b)]
    assert set(heads[0]) == set(heads[1]) and any('write' in k for k in heads[0])
    assert all(torch.equal(heads[0][k], heads[1][k]) for k in heads[0])
    states = [c['optimizer']['state'] for c in (a, b)]
    assert set(states[0]) == set(states[1])
    assert all(
        torch.equal(states[0][i][k], states[1][i][k]) for i in states[0] for k in states[0][i]
    )


def test_only_what_it_fixed_is_released(tmp_path):
    """Not the mask head, which no head reaches; and what rests throughout is released at last."""
    model = toy.detector_model(mask=True)
    path = tmp_path / 'mask.pth'
    torch.save(toy.build(model).state_dict(), path)
    for until in (0.5, 1.0):
        cfg = _config(
            tmp_path,
            [dict(FIRST, until=until), dict(type='PhaseWatchHook')],
            model_teacher=dict(config=toy.whole(model), checkpoint=str(path)),
            work_dir=str(tmp_path / f'run{until}'),
        )
        runner = toy.runner_of(cfg)
        before = {n: p.requires_grad for n, p in runner.model.named_parameters()}
        masks = {n: wanted for n, wanted in before.items() if 'mask_head' in n}
        assert masks and not any(masks.values())
        runner.train()
        assert {n: p.requires_grad for n, p in runner.model.named_parameters()} == before
        start = next(h for h in runner.hooks if isinstance(h, PhaseWatchHook)).weights[0]
        now = runner.model.state_dict()
        still = [k for k in now if torch.equal(now[k], start[k])]
        assert any(k.startswith('neck') for k in still) == (until == 1.0)
        assert {n.split('net.', 1)[1] for n in masks} <= set(still)


def test_chosen_parts(tmp_path):
    """One part alone; the rest of what the working heads reach is trained from the start."""
    neck = toy.build(toy.detector_model()).neck
    name = next(n for n, m in neck.named_modules() if n and any(True for _ in m.parameters()))
    hooks = [dict(FIRST, parts=[f'neck.{name}']), dict(type='PhaseWatchHook')]
    runner = toy.runner_of(_config(tmp_path, hooks))
    runner.train()
    watch = next(h for h in runner.hooks if isinstance(h, PhaseWatchHook))
    moved = {k for k in watch.weights[0] if not watch.weights[3][k].equal(watch.weights[0][k])}
    inside = {k for k in watch.weights[0] if k.startswith(f'neck.{name}.')}
    assert inside and not inside & moved
    assert any(k.startswith('neck.') for k in moved)
    # No head at work reaches these: fixed all the same, not decayed.
    assert not any(k.startswith(('rpn_head.', 'roi_head.')) for k in moved)


def test_default_parts_of_both_families():
    hook = FeaturesFirstHook()
    assert set(hook._named(toy.build(toy.detector_model()))) == {'neck', 'rpn_head', 'roi_head'}
    net = toy.build(toy.classifier_model(), scope='mmpretrain')
    assert set(hook._named(net)) == {'head'}


@pytest.mark.parametrize(
    ('parts', 'message'),
    [
        (['nek'], "no part 'nek' .did you mean 'neck'"),
        (['neck', 'roi_head.bbox_heads'], "mean 'roi_head.bbox_head'"),
        # There, but with nothing to train.
        ('data_preprocessor', 'Its parts are backbone, neck, rpn_head, roi_head'),
    ],
)
def test_unknown_parts_are_answered_with_near_ones(parts, message):
    with pytest.raises(ValueError, match=message):
        FeaturesFirstHook(parts=parts)._named(toy.build(toy.detector_model()))


def test_until_is_a_share():
    with pytest.raises(ValueError, match=r'in \[0, 1\], not 1.2'):
        FeaturesFirstHook(until=1.2)


@pytest.mark.parametrize(
    ('parts', 'heads', 'message'),
    [
        (None, HEADS[1:], 'no head compares features'),
        (['backbone', 'neck', 'rpn_head', 'roi_head'], HEADS, 'the whole student'),
        (['backbone', 'neck'], HEADS, 'reaches what is behind'),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(tmp_path, parts, heads, message):
    hooks = [dict(FIRST, parts=parts), dict(type='PhaseWatchHook')]
    cfg = _config(tmp_path, hooks, model_heads=copy.deepcopy(heads))
    cfg['model']['student']['init'] = 'random'
    with pytest.raises(ValueError, match=message):
        toy.runner_of(cfg).train()
    assert not list((tmp_path / 'run').glob('iter_*.pth'))


def test_nothing_first(tmp_path):
    """``until=0`` leaves the first part out; then nothing has to be there for it."""
    hooks = [dict(FIRST, until=0), dict(type='PhaseWatchHook')]
    cfg = _config(tmp_path, hooks, model_heads=HEADS[1:])
    runner = toy.runner_of(cfg)
    runner.train()
    watch = next(h for h in runner.hooks if isinstance(h, PhaseWatchHook))
    assert watch.answers == list(range(6)) and watch.training == [(True, True, True)] * 6
