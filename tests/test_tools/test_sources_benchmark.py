"""The benchmark of sources: its rows, the steps that a budget leaves, and how it goes on."""

import importlib.util
import json
import re
import sys

import pytest
from mmengine.config import Config
from tiny_runs import ROOT

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.distillers import build_network
from mmdfkd.evaluation import insert_tables, read_results
from mmdfkd.evaluation.teacher_passes import teacher_passes
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import Prior, SyntheticSource


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'benchmarks' / 'sources.py'
    spec = importlib.util.spec_from_file_location('sources_benchmark', path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def plain_steps(tool, tmp_path, monkeypatch):
    """Results of its own, and steps that ask no network: a hundredth of the budget."""
    monkeypatch.setattr(tool, 'RESULTS', tmp_path / 'sources.jsonl')
    monkeypatch.setattr(tool, 'steps_of', lambda name, row, budget: budget // 100)


def _line(tool, run, **changes):
    line = dict(
        benchmark='sources',
        set=run.set,
        student=0.4951,
        row=run.row,
        init=run.init,
        seed=run.seed,
        metrics=dict(accuracy=50.0),
        teacher=80.0,
        ceiling=60.0,
        steps=run.steps,
        seconds=200.0,
        threads=2,
        commit='abc1234',
        command='python tools/train.py',
        synthesis_seconds=10.0,
        teacher_passes=1000,
    )
    return dict(line, **changes)


def _work_off(tool, plan):
    """Runs in the order they would be made, each written down as done."""
    made = []
    while (run := tool.next_run(plan, tool.read_lines())) is not None:
        made.append(run)
        with tool.RESULTS.open('a') as stream:
            stream.write(json.dumps(_line(tool, run)) + '\n')
        assert len(made) < 400
    return made


def _rows(runs, init):
    return [run.row for run in runs if run.init == init]


def test_quick_has_the_named_rows_of_both_starts(tool, plain_steps):
    made = _work_off(tool, tool.Plan('cifar10'))
    # The ceiling first, so that every line can name it.
    assert _rows(made, 'random') == [
        'real (ceiling)',
        'procedural',
        'procedural + refinement',
        'inversion',
        'mixture',
        'transformer generator',
        'DAFL',
        'noise',
    ]
    assert _rows(made, 'inherit') == [
        'real (ceiling)',
        '0 steps',
        'procedural',
        'procedural + refinement',
        'inversion',
        'mixture',
    ]
    assert {run.steps for run in made} == {0, 480} and {run.seed for run in made} == {0}


def test_full_has_every_source_and_prior_and_three_seeds(tool, plain_steps):
    plan = tool.Plan('cifar10', 'full', seeds=(0, 1, 2))
    made = _work_off(tool, plan)
    assert len(made) == len(set(made)) and len(made) % 3 == 0
    rows = [run.row for run in made]
    assert {*tool.ROWS, *tool.EXTRA_ROWS, '0 steps'} == set(rows)
    assert len({run.name for run in made}) == len(made)
    random = {'first paper', 'NAYER', 'noise', 'DAFL, replayed', 'DAFL + procedural'}
    assert random <= set(rows) and not random & set(_rows(made, 'inherit'))
    assert {'inversion, attention', 'procedural, glyphs'} <= set(_rows(made, 'inherit'))
    _has_all_that_is_registered(tool)
    # The first paper is of two sets.
    assert tool.Plan('digits', 'full').missing_rows() == {
        'first paper': 'there is no such config for digits'
    }


def _has_all_that_is_registered(tool):
    """Every source and every prior is in some row, or it is said why not."""
    cfg = Config.fromfile(tool.base_config('cifar10', tool.PROCEDURAL))
    teacher = Config.fromfile(cfg.model.teacher.config)
    adapter = build_adapter(build_network(teacher), Normalizer.from_config(teacher))
    shown, renderers = set(), set()
    for row in (*tool.ROWS, *tool.EXTRA_ROWS):
        source = MODELS.build(_config(tool, 'cifar10', row).model.source)
        for part in source.modules():
            # A term that does not suit the teacher is left out of the run.
            if not isinstance(part, Prior) or part.unsuited(adapter) is None:
                shown.update(kind.__name__ for kind in type(part).__mro__)
            renderers.update(re.findall(r"'mmdfkd\.(\w+Renderer)'", str(vars(part))))
    known = {
        name.split('.')[-1]
        for name, kind in MODELS.module_dict.items()
        if issubclass(kind, SyntheticSource | Prior)
        # Others may be registered, too: those of the documents' examples are.
        and kind.__module__.startswith('mmdfkd.')
    }
    assert {'ReplaySource', 'SubBoxPrior', 'JensenShannonPrior'} <= known
    assert known - shown == set(tool.WITHOUT_ROW) and all(tool.WITHOUT_ROW.values())
    assert {'CombinedRenderer', 'GlyphRenderer', 'ProceduralRenderer'} <= renderers


def _config(tool, name, row) -> Config:
    cfg = Config.fromfile(tool.base_config(name, row))
    cfg.merge_from_dict(dict(model=dict(source=tool.changes_of(name, row))))
    return cfg


def test_finished_runs_are_not_repeated(tool, plain_steps):
    plan = tool.Plan('mnist', inits=['inherit'])
    made = _work_off(tool, plan)
    assert tool.next_run(plan, tool.read_lines()) is None
    lines = tool.RESULTS.read_text().splitlines()
    tool.RESULTS.write_text('\n'.join(lines[:2] + lines[3:]) + '\n')
    assert _work_off(tool, plan) == [made[2]]
    # Another budget, seed or set is another run; a start is of no budget.
    for name, changed in (
        ('mnist', dict(passes=70_000)),
        ('mnist', dict(seeds=(7,))),
        ('cifar10', {}),
    ):
        other = tool.Plan(name, inits=['inherit'], **changed)
        assert tool.next_run(other, tool.read_lines()).row == tool.REAL
    text = tool.describe(tool.Plan('mnist', passes=70_000), tool.read_lines())
    assert 'done     mnist, inherit: 0 steps, seed 0: 50.000 accuracy' in text
    assert 'to run   mnist, inherit: mixture, 700 steps, seed 0 (about 292 s)' in text


@pytest.mark.parametrize(
    'row',
    [
        'real (ceiling)',
        'transformer generator',
        'inversion',
        'NAYER',
        'inversion, from noise',
        'procedural, textures + glyphs',
        'DAFL, replayed',
        'DAFL + procedural',
    ],
)
def test_steps_are_the_most_that_the_budget_allows(tool, row):
    budget = tool.SETS['digits'].budget['full']
    steps = tool.steps_of('digits', row, budget)
    cfg = _config(tool, 'digits', row)
    teacher = build_network(Config.fromfile(cfg.model.teacher.config))
    passes = teacher_passes(MODELS.build(cfg.model.source), teacher, (32, 32))
    batch = cfg.train_dataloader.batch_size
    assert passes.of(steps, batch) <= budget < passes.of(steps + 1, batch)
    if row == tool.REAL:
        assert steps == budget // batch
    if row == tool.GENERATOR:
        # Every step another one of the generator's, with gradient.
        assert steps == budget // (3 * batch)


def test_a_budget_that_leaves_nothing_is_refused(tool):
    with pytest.raises(ValueError, match='digits, inversion: 23500 passes'):
        tool.steps_of('digits', 'inversion', 23_500)


@pytest.mark.parametrize('name', ['cifar10', 'mnist', 'digits'])
def test_options_change_what_is_there(tool, name):
    """Every setting of a run exists in its config, so none is misspelt."""
    for row, init in (('DAFL', 'random'), ('mixture', 'inherit'), ('0 steps', 'inherit')):
        config = tool.base_config(name, row)
        cfg = Config.fromfile(config)
        run = tool.Run(name, row, init, 5, 0 if row == '0 steps' else 400)
        options = tool.options_of(run, config)
        for option in options:
            key, value = option.split('=')
            where = cfg
            for part in key.split('.'):
                where = where[int(part)] if part.isdigit() else where[part]
            assert value and where is not None
        assert 'randomness.seed=5' in options
        assert ('optim_wrapper.optimizer.lr=0.001' in options) == (init == 'random')


def test_every_further_row_builds(tool, tmp_path):
    """Its config is written; the source is what the row says."""
    for row in tool.EXTRA_ROWS:
        cfg = Config.fromfile(tool.row_config('cifar10', row, tmp_path))
        source = MODELS.build(cfg.model.source)
        if row in tool.PRESETS:
            assert cfg.model.source.preset == row.lower()
            assert source.generator.base == (8, 8)
        elif row in tool.OTHERS:
            wanted = _config(tool, 'cifar10', row).model.source
            assert cfg.model.source.to_dict() == wanted.to_dict()
        elif row != tool.PAPER:
            asked = tool.INVERSIONS[row.removeprefix('inversion, ')]
            assert (source.sparse is not None) == ('sparse' in asked)
            if 'priors' in asked:
                assert len(source.priors) == len(asked['priors'])
        # Nothing else is.
        assert cfg.model.teacher.checkpoint.endswith('cifar10/vit_cifar10.pth')


def test_another_folder_of_the_set_is_read_and_not_shown(tool, tmp_path):
    plan = tool.Plan('cifar10')
    benchmark = tool.Benchmark(plan, tmp_path, 'work_dirs/x', '/elsewhere/cifar')
    run = tool.Run('cifar10', tool.REAL, 'random', 0, 400)
    command = benchmark._command(run, tmp_path / run.name)
    assert 'train_dataloader.dataset.data_root=/elsewhere/cifar/' in command
    assert 'test_dataloader.dataset.data_root=/elsewhere/cifar/' in command
    shown = benchmark._shown(command)
    assert '/elsewhere' not in shown and str(tmp_path) not in shown
    with pytest.raises(FileNotFoundError, match=r'test split of cifar10.*--data-root'):
        tool.check_files(plan, str(tmp_path))


def test_lines_make_a_table_with_the_passes(tool, plain_steps):
    plan = tool.Plan('mnist', rows=['mixture'], inits=['inherit'])
    assert [run.row for run in _work_off(tool, plan)] == ['mixture', '0 steps']
    table = insert_tables(
        '<!-- results:sources set=mnist --><!-- /results -->', read_results(tool.RESULTS)
    )
    assert '| teacher passes |' in table and '| 62.5 % | 83.3 % | 480 | 200 | 10 | 1000 |' in table
