"""An interrupted run goes on bit for bit, whatever it validates in between."""

import shutil

import pytest
import torch
import toy

from mmdfkd.engine.hooks.banks import files_named_by
from mmdfkd.engine.hooks.distill import step_seed
from mmdfkd.inheritance import shrink_config

SOURCE = dict(
    type='mmdfkd.RefinedSource',
    source=dict(
        type='mmdfkd.PooledSource',
        renderer=dict(type='mmdfkd.ProceduralRenderer'),
        pool_size=8,
        num_workers=0,
    ),
    priors=[dict(type='mmdfkd.TargetPrior')],
    every=2,
    batch=3,
    steps=2,
    lr=0.05,
    share=0.5,
    max_images=5,
)

#: Sources that keep images beside the run, each with refreshes before and behind the third step; of
#: generators and layouts see test_generator_run.py and test_synthesis/test_layout_inversion.py.
BANKED = dict(
    inversion=dict(
        type='mmdfkd.PixelInversionSource',
        source=SOURCE['source'],
        priors=[dict(type='mmdfkd.TargetPrior'), dict(type='mmdfkd.DivergencePrior')],
        images=2,
        every=2,
        batch=2,
        steps=3,
        checks=1,
        share=0.5,
    ),
    replay=dict(
        type='mmdfkd.ReplaySource',
        source=SOURCE,
        prefill=2,
        every=2,
        batch=2,
        share=0.5,
        # What is drawn depends on what the student of that step said.
        bank=dict(policy='disagreement', capacity=6),
        measure=3,
        measure_every=2,
    ),
)


def _config(folder, **changes):
    # With drop path, which draws from the global generator in every step.
    student = shrink_config(toy.whole(toy.detector_model()), width=0.5, depth=1.0)
    student.backbone.drop_path_rate = 0.4
    settings = dict(model_source=SOURCE, **changes)
    settings['model_student'] = dict(config=toy.whole(student), init='inherit')
    return toy.run_config(folder, **settings)


def _run(cfg):
    toy.runner_of(cfg).train()
    return torch.load(f'{cfg["work_dir"]}/iter_6.pth', weights_only=False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('resume')


@pytest.fixture(scope='module')
def through(folder):
    """Six steps in one go, nothing validated before the last."""
    return _run(_config(folder))


def _assert_same(a, b, where=''):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert set(a) == set(b), where
        for key in a:
            _assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_same(x, y, f'{where}.{i}')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_end(a, b):
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        _assert_same(a[key], b[key], key)
    for key in ('heads', 'source', 'seed', 'threads', 'images_read'):
        _assert_same(a['dfkd_state'][key], b['dfkd_state'][key], key)


def test_the_run_is_worth_comparing(folder, through):
    """Everything that has a state moves between the third step and the sixth."""
    half = torch.load(folder / 'run' / 'iter_3.pth', weights_only=False)
    assert not torch.equal(*(next(iter(c['state_dict'].values())) for c in (half, through)))
    heads = [c['dfkd_state']['heads'] for c in (half, through)]
    assert any(not torch.equal(heads[0][k], heads[1][k]) for k in heads[0])
    rings = [c['dfkd_state']['source']['ring'] for c in (half, through)]
    assert len(rings[0]) and not torch.equal(rings[0], rings[1][: len(rings[0])])


def test_resuming_equals_going_through(folder, through):
    """With validation after every step, and another seed in the config."""
    cfg = _config(
        folder,
        work_dir=str(folder / 'resumed'),
        load_from=str(folder / 'run' / 'iter_3.pth'),
        resume=True,
        randomness=dict(seed=1234),
    )
    cfg['train_cfg'] = dict(cfg['train_cfg'], val_interval=1)
    resumed = _run(cfg)
    assert_same_end(through, resumed)
    # What was inherited, and how long that took, is still known.
    _assert_same(through['dfkd_state']['inheritance'], resumed['dfkd_state']['inheritance'])
    assert through['dfkd_state']['inheritance'] is not None
    # The seconds of both parts count: the first one's are in the checkpoint.
    half = torch.load(folder / 'run' / 'iter_3.pth', weights_only=False)['dfkd_state']
    now = resumed['dfkd_state']
    for part in ('seconds', 'synthesis_seconds'):
        assert 0 < half[part] < now[part]
    assert now['synthesis_seconds'] < now['seconds']
    assert not (folder / 'resumed' / 'student_start.pth').exists()
    assert (folder / 'resumed' / 'student.pth').exists()


@pytest.mark.parametrize('name', BANKED)
def test_resuming_a_source_that_keeps_images(name, tmp_path):
    """Killed in the fourth step, whose images may lie in the bank's files already."""
    ended = _run(toy.run_config(tmp_path, model_source=BANKED[name]))
    third = torch.load(tmp_path / 'run' / 'iter_3.pth', weights_only=False)
    made = [int(c['dfkd_state']['source']['made']) for c in (third, ended)]
    assert 2 < made[0] < made[1], 'images are made before the third step and after it'
    shutil.copytree(tmp_path / 'run' / 'synthetic', tmp_path / 'resumed' / 'synthetic')
    again = _run(
        toy.run_config(
            tmp_path,
            model_source=BANKED[name],
            work_dir=str(tmp_path / 'resumed'),
            load_from=str(tmp_path / 'run' / 'iter_3.pth'),
            resume=True,
        )
    )
    assert_same_end(ended, again)
    # What only the third step's checkpoint needs is no longer beside the resumed run.
    runs = [tmp_path / 'run', tmp_path / 'resumed']
    needed = [files_named_by(run / 'iter_6.pth') for run in runs]
    assert needed[0] == needed[1] != set()
    for name in (*needed[0], 'bank-r000.json'):
        first, second = ((run / 'synthetic' / name).read_bytes() for run in runs)
        assert first == second, name


def test_a_mixture_killed_at_any_step(tmp_path):
    """Refined and inverted images, whatever the last checkpoint before the kill."""
    source = dict(type='mmdfkd.MixtureSource', sources=[SOURCE, BANKED['inversion']])

    def config(name, **changes):
        cfg = _config(tmp_path, work_dir=str(tmp_path / name), **changes)
        cfg['model']['source'] = source
        cfg['default_hooks']['checkpoint'].update(interval=1, max_keep_ckpts=-1)
        return cfg

    ended = _run(config('run'))
    states = [
        torch.load(tmp_path / 'run' / f'iter_{step}.pth', weights_only=False)['dfkd_state']
        for step in range(1, 7)
    ]
    made = [int(state['source']['sources.1.made']) for state in states]
    assert len(set(made)) > 2, 'images are made between most of the checkpoints'
    for step in range(1, 6):
        folder = tmp_path / f'resumed_{step}'
        shutil.copytree(tmp_path / 'run' / 'synthetic', folder / 'synthetic')
        again = _run(
            config(folder.name, load_from=str(tmp_path / 'run' / f'iter_{step}.pth'), resume=True)
        )
        assert_same_end(ended, again)


def test_repeating_with_other_validation_equals_it(folder, through):
    cfg = _config(folder, work_dir=str(folder / 'again'))
    cfg['train_cfg'] = dict(cfg['train_cfg'], val_interval=2)
    assert_same_end(through, _run(cfg))


def test_resume_with_nothing_there_starts_the_student(folder, through):
    """Not from random weights, as if a checkpoint were to come."""
    cfg = _config(folder, work_dir=str(folder / 'fresh'), resume=True)
    assert_same_end(through, _run(cfg))
    assert (folder / 'fresh' / 'student_start.pth').exists()


def test_a_plain_student_is_nothing_to_resume_from(folder, through):
    cfg = _config(
        folder,
        work_dir=str(folder / 'plain'),
        load_from=str(folder / 'run' / 'student.pth'),
        resume=True,
    )
    with pytest.raises(ValueError, match='plain student'):
        toy.runner_of(cfg).train()


def test_seeds_differ_by_seed_step_and_rank():
    seeds = [step_seed(s, i, r) for s in range(5) for i in range(20) for r in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3) < 2**32
