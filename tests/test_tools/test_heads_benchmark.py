"""The benchmark of heads: its rows differ in nothing but heads, and it goes on where it stopped."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from tiny_runs import ROOT

from mmdfkd.evaluation import insert_tables, read_results


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'benchmarks' / 'heads.py'
    spec = importlib.util.spec_from_file_location('heads_benchmark', path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def _line(tool, run, lines, accuracy):
    return dict(
        benchmark='heads',
        set=run.set,
        student=0.4951,
        row=run.row,
        init=run.init,
        seed=run.seed,
        metrics=tool.Benchmark.metrics(run, lines, accuracy),
        teacher=80.0,
        ceiling=tool.Benchmark.ceiling(run, lines, accuracy),
        steps=run.steps,
        seconds=200.0,
        threads=2,
        commit='abc1234',
        command='python tools/train.py',
        synthesis_seconds=10.0,
    )


def _work_off(tool, plan, out, accuracy=lambda run: 50.0):
    """Runs in the order they would be made, each written down as done."""
    made = []
    while (run := tool.next_run(plan, lines := tool.finished_runs(out, tool.identity))) is not None:
        made.append(run)
        with out.open('a') as stream:
            stream.write(json.dumps(_line(tool, run, lines, accuracy(run))) + '\n')
        assert len(made) < 400
    return made


def test_quick_has_the_named_rows_on_both_kinds_of_images(tool, tmp_path):
    out = tmp_path / 'heads.jsonl'
    made = _work_off(tool, tool.Plan(), out)
    named = {'labels only', 'KL', *(f'KL + {n}' for n in ('manifold', 'probe', 'ViTKD', 'TaT'))}
    assert {run.row for run in made} == named | {'KL + aligned features'}
    # What others are measured against comes first.
    assert (made[0].images, made[0].row) == ('real', 'KL')
    assert [run.images for run in made] == ['real'] * 7 + ['data-free'] * 7
    assert {(run.init, run.seed, run.steps) for run in made} == {('random', 0, 400)}
    assert len({run.name for run in made}) == len(made)
    # What is done is not done again.
    assert tool.next_run(tool.Plan(), tool.finished_runs(out, tool.identity)) is None
    lines = out.read_text().splitlines()
    out.write_text('\n'.join(lines[:3] + lines[4:]) + '\n')
    assert _work_off(tool, tool.Plan(), out) == [made[3]]
    text = tool.describe(tool.Plan(steps=800), tool.finished_runs(out, tool.identity))
    assert 'to run   cifar10 real, random: KL + TaT, 800 steps, seed 0 (about 400 s)' in text


def test_full_has_every_row_and_three_seeds(tool, tmp_path):
    seeds = tool.SEEDS['full']
    plan = tool.Plan('full', seeds=seeds)
    made = _work_off(tool, plan, tmp_path / 'heads.jsonl')
    assert {run.row for run in made} == set(tool.ROWS) and {run.seed for run in made} == set(seeds)
    inherited = {run.row for run in made if run.init == 'inherit'}
    assert inherited == {'KL', *tool.INHERITED_ROWS, *tool.OWN_INHERITED_ROWS}
    assert {run.row for run in made if run.init == 'random'} == {'KL'} | set(tool.ROWS) - inherited
    # Every head of both starts, but for students of one start, where starts are named.
    both = {run.row for run in tool.Plan('full', inits=tool.INITS).runs() if run.init == 'inherit'}
    assert both == set(tool.ROWS) - set(tool.OWN_ROWS)
    # True labels are of true images.
    assert {run.images for run in made if run.row in tool.REAL_ROWS} == {'real'}
    # A seed is whole before the next begins.
    assert [run.seed for run in made] == sorted(run.seed for run in made)


def test_gains_are_those_over_the_same_seed(tool, tmp_path):
    out = tmp_path / 'heads.jsonl'
    rows = ['KL', 'KL + TaT']
    found = {('KL', 0): 50.0, ('KL', 1): 40.0, ('KL + TaT', 0): 51.5, ('KL + TaT', 1): 42.5}
    plan = tool.Plan(rows=rows, seeds=(0, 1))
    _work_off(tool, plan, out, lambda run: found[run.row, run.seed] - 9 * (run.images != 'real'))
    table = insert_tables(
        '<!-- results:heads set=cifar10_data-free --><!-- /results -->', read_results(out)
    )
    assert '| heads |' in table and 'KL + TaT | random | 50 % | 38.00 ± 6.36 | 2.00 ± 0.71' in table
    # Nothing to be measured against is no gain; nor is another student.
    known = {tool.Run('real', 'KL', 'random', 0, 400): dict(metrics=dict(accuracy=50.0))}
    own = tool.Run('real', 'SimKD', 'random', 0, 400)
    assert tool.Benchmark.metrics(own, known, 60.0) == {'accuracy': 60.0}
    known[tool.Run('real', 'KL, classifier kept', 'random', 0, 400)] = dict(
        metrics=dict(accuracy=58.0)
    )
    assert tool.Benchmark.metrics(own, known, 60.0) == {'accuracy': 60.0, 'over_kl': 2.0}
    assert tool.Benchmark.metrics(tool.Run('real', 'KL + TaT', 'random', 5, 400), {}, 60.0) == {
        'accuracy': 60.0
    }


def test_rows_differ_in_their_heads_alone(tool, tmp_path):
    main = {
        images: Config.fromfile(path).to_dict()
        for images, path in (('data-free', tool.MAIN_CONFIG), ('real', tool.REAL_CONFIG))
    }
    student = main['data-free']['model']['student']
    main['real']['model']['student'] = student
    heads = set()
    shared = [row for row in tool.ROWS if row not in tool.OWN_CONFIGS | tool.REAL_ROWS]
    for row in shared:
        same = []
        for images, base in main.items():
            run = tool.Run(images, row, 'random', 0, 400)
            cfg = Config.fromfile(tool.row_config(run, tmp_path)).to_dict()
            mine = cfg['model'].pop('heads')
            heads.add(json.dumps(mine))
            same.append(mine)
            assert cfg == dict(base, model={k: v for k, v in base['model'].items() if k != 'heads'})
        assert same[0] == same[1], row
        if row.startswith('KL'):
            assert same[0][0] == dict(type='mmdfkd.LogitHead'), row
    assert len(heads) == len(shared)


def test_the_baseline_learns_labels_and_nothing_else(tool, tmp_path):
    run = tool.Run('real', 'true labels', 'random', 0, 400)
    cfg = Config.fromfile(tool.row_config(run, tmp_path)).to_dict()
    base = Config.fromfile(tool.REAL_CONFIG).to_dict()
    assert cfg['model'].pop('heads') == [
        dict(type='mmdfkd.LogitHead', loss='label', hard_labels='target')
    ]
    assert cfg['model']['source'].pop('labels') and not cfg['model']['data_free']
    base['model'].pop('heads')
    base['model']['student'] = Config.fromfile(tool.MAIN_CONFIG).model.student.to_dict()
    assert cfg == base


def test_methods_with_a_student_of_their_own_bring_it_along(tool, tmp_path):
    for row in tool.OWN_CONFIGS:
        free, real = (
            Config.fromfile(tool.row_config(tool.Run(images, row, 'random', 0, 400), tmp_path))
            for images in ('data-free', 'real')
        )
        assert free.model.student == real.model.student and free.model.heads == real.model.heads
        assert free.model.get('extra_teachers') == real.model.get('extra_teachers')
        assert Path(real.model.student.config).is_file()
        assert real.model.source.type == 'mmdfkd.DatasetSource' and not real.model.data_free
        init = 'inherit' if row in tool.OWN_INHERITED_ROWS else None
        assert init in (None, free.model.student.init)
        run = tool.Run('real', row, 'random', 0, 400)
        options = tool.options_of(run, tool.row_config(run, tmp_path))
        assert f'model.student.init={free.model.student.init}' in options
    # Of each there is KL alone of the same student, from the same start.
    for row, alone in tool.OWN_KL.items():
        assert tool.kl_of(row) == tool.kl_of(alone) == alone and alone in tool.OWN_CONFIGS
        assert (row in tool.OWN_ROWS) == (alone in tool.OWN_ROWS)
        for images in tool.IMAGES:
            mine, its = (
                Config.fromfile(tool.row_config(tool.Run(images, n, 'random', 0, 400), tmp_path))
                for n in (row, alone)
            )
            assert its.model.heads == [dict(type='mmdfkd.LogitHead')] != mine.model.heads
            assert its.model.source == mine.model.source
            own, other = (Path(cfg.model.student.config).resolve() for cfg in (mine, its))
            assert own == other and mine.model.student.init == its.model.student.init
            assert not its.model.get('extra_teachers')
    assert set(tool.OWN_KL) | set(tool.OWN_KL.values()) == set(tool.OWN_CONFIGS)
    # SimKD's classifier is the teacher's, not random.
    run = tool.Run('real', 'SimKD', 'random', 0, 400)
    assert 'model.student.init=config' in tool.options_of(run, tool.row_config(run, tmp_path))


@pytest.mark.parametrize('images', ['real', 'data-free'])
@pytest.mark.parametrize('steps', [400, 3])
def test_options_change_what_is_there(tool, images, steps, tmp_path):
    """Every setting of a run exists in its config; schedules fit into short runs."""
    run = tool.Run(images, 'KL', 'random', 5, steps)
    config = tool.row_config(run, tmp_path)
    cfg = Config.fromfile(config)
    options = dict(option.split('=') for option in tool.options_of(run, config))
    for key in options:
        where = cfg
        for part in key.split('.'):
            where = where[int(part)] if part.isdigit() else where[part]
        assert where is not None, key
    assert options['randomness.seed'] == '5' and 'optim_wrapper.optimizer.lr' in options
    warmup = int(options.get('param_scheduler.0.end', cfg.param_scheduler[0]['end']))
    begin = int(options.get('param_scheduler.1.begin', cfg.param_scheduler[1]['begin']))
    assert 0 < warmup == begin < steps == int(options['param_scheduler.1.end'])
    assert int(options['param_scheduler.1.T_max']) == steps - warmup


def test_another_folder_of_the_set_is_read_and_not_shown(tool, tmp_path):
    benchmark = tool.Benchmark(tmp_path, 'work_dirs/x', data_root='/elsewhere/cifar')
    run = tool.Run('real', 'KL + TaT', 'random', 0, 400)
    command = benchmark.command(run, tmp_path / run.name)
    assert 'train_dataloader.dataset.data_root=/elsewhere/cifar/' in command
    shown = benchmark._shown(command)
    assert '/elsewhere' not in shown and str(tmp_path) not in shown
    with pytest.raises(FileNotFoundError, match=r'test split of CIFAR-10.*--data-root'):
        tool.check_files(tool.Plan(), str(tmp_path))
    with pytest.raises(SystemExit):
        tool.parse_args(['--out', str(tmp_path / 'other.jsonl')])
