"""The benchmark's plan: which runs, in which order, which are done, which cannot be made."""

import importlib.util
import json
import sys

import pytest
from mmengine.config import Config
from tiny_runs import ROOT

from mmdfkd.distillers import build_network
from mmdfkd.distillers.student_spec import student_config
from mmdfkd.evaluation import read_results, results_markdown
from mmdfkd.evaluation.benchmark import moved


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'benchmarks' / 'detectors.py'
    spec = importlib.util.spec_from_file_location('detectors_benchmark', path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def folder(tool, tmp_path, monkeypatch):
    """A checkout with the configs of four rows of the digits; the other two are missing."""
    for name in ('digits', 'digits_detr'):
        configs = tmp_path / 'configs' / name
        configs.mkdir(parents=True)
        for row in ('real', 'noise', 'procedural', 'refined'):
            (configs / f'dfkd_{row}.py').write_text('')
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    monkeypatch.setattr(tool, 'RESULTS', tmp_path / 'detectors.jsonl')
    return tmp_path


def _line(tool, run, score=0.5):
    return dict(
        benchmark='detectors',
        set=run.set,
        student={50: 0.4945, 40: 0.3777, 20: 0.1992}[run.size],
        row=run.row,
        init=run.init,
        seed=run.seed,
        metrics=dict(bbox_mAP=score),
        teacher=0.776,
        ceiling=None,
        steps=run.steps,
        seconds=200.0,
        threads=2,
        commit='abc1234',
        command='python tools/train.py',
    )


def _work_off(tool, plan, scores=()):
    """Runs in the order they would be made, each written down as done."""
    made = []
    while (run := tool.next_run(plan, tool.read_lines())) is not None:
        made.append(run)
        line = _line(tool, run, dict(scores).get(run.row, 0.5))
        with tool.RESULTS.open('a') as stream:
            stream.write(json.dumps(line) + '\n')
        assert len(made) < 200
    return made


def _rows(runs, size, init):
    return [run.row for run in runs if (run.size, run.init) == (size, init)]


def test_quick_takes_the_best_row_of_the_larger_student(tool, folder):
    plan = tool.Plan('digits')
    before = list(plan.runs({}))
    assert tool.BEST in _rows(before, 20, 'inherit')
    made = _work_off(tool, plan, {'noise': 0.1, 'procedural + refinement': 0.7, tool.REAL: 0.8})
    everything = [tool.REAL, '0 steps', 'noise', 'procedural', 'procedural + refinement']
    assert _rows(made, 40, 'inherit') == everything
    assert _rows(made, 20, 'inherit') == [
        tool.REAL,
        '0 steps',
        'procedural',
        'procedural + refinement',
    ]
    # A random student has no start to report, and takes longer.
    assert _rows(made, 40, 'random') == [tool.REAL, 'procedural', 'procedural + refinement']
    assert {r.steps for r in made if r.init == 'random'} == {600}
    assert {r.steps for r in made if r.init == 'inherit'} == {0, 300}
    assert _rows(made, 20, 'random') == []
    assert {r.seed for r in made} == {0}


def test_the_ceiling_is_never_the_best_and_procedural_is_not_run_twice(tool, folder):
    made = _work_off(tool, tool.Plan('digits'), {'procedural': 0.6, tool.REAL: 0.9})
    assert _rows(made, 20, 'inherit') == [tool.REAL, '0 steps', 'procedural']


def test_a_set_with_one_size_has_no_smaller_student(tool, folder):
    made = _work_off(tool, tool.Plan('digits_detr'), {'procedural': 0.6})
    assert {r.size for r in made} == {50}
    assert _rows(made, 50, 'random') == [tool.REAL, 'procedural']
    assert '0 steps' in _rows(made, 50, 'inherit')


def test_full_is_every_row_of_every_student_and_seed(tool, folder):
    made = _work_off(tool, tool.Plan('digits', 'full', seeds=(0, 1, 2)))
    # Four rows of two sizes and two starts, and a start of each size; three seeds.
    assert len(made) == len(set(made)) == 3 * (4 * 4 + 2)
    assert {r.steps for r in made} == {0, 1000, 2000}


def test_finished_runs_are_not_repeated(tool, folder):
    plan = tool.Plan('digits', sizes=[40], inits=['inherit'])
    made = _work_off(tool, plan)
    assert tool.next_run(plan, tool.read_lines()) is None
    lines = tool.RESULTS.read_text().splitlines()
    tool.RESULTS.write_text('\n'.join(lines[:2] + lines[3:]) + '\n')
    assert _work_off(tool, plan) == [made[2]]
    # Another number of steps, seed or set is another run.
    for changed in (dict(steps=400), dict(seeds=(7,))):
        other = tool.Plan('digits', sizes=[40], inits=['inherit'], **changed)
        assert tool.next_run(other, tool.read_lines()).row == tool.REAL


def test_a_line_holds_the_teacher_s_ap50(tool, folder, monkeypatch):
    """By which the table decides whether there is a retention."""
    run = tool.Plan('aerial_cars').run(50, tool.REAL, 'random', 0)
    facts = dict(teacher_checkpoint='teacher.pth', seconds=9.0, synthesis_seconds=0.0)
    facts |= dict(steps=run.steps, threads=1, commit='abc1234')
    (folder / run.name).mkdir()
    (folder / run.name / 'run.json').write_text(json.dumps(facts))
    found = {'teacher_config.py': ((0.1, 0.25), 1000), 'student_config.py': ((0.08, 0.2), 474)}

    def measure(work_dir, checkpoint, config='student_config.py'):
        values, parameters = found[config]
        return dict(zip(tool.METRICS, values, strict=False)), parameters

    monkeypatch.setattr(tool, 'measure', measure)
    monkeypatch.setattr(tool, 'train', lambda *_: ['python', 'tools/train.py'])
    line = tool.Benchmark(folder, 'work_dirs').make(run, {})
    assert (line['teacher'], line['teacher_mAP_50'], line['ceiling']) == (0.1, 0.25, 0.08)
    assert 'AP50, 0.250, is below 0.3' in results_markdown(read_results(tool.RESULTS))


def test_asked_for_rows_are_run_for_every_student(tool, folder):
    plan = tool.Plan('digits', rows=['noise'], sizes=[20])
    assert [(r.row, r.init) for r in _work_off(tool, plan)] == [
        ('noise', 'inherit'),
        ('0 steps', 'inherit'),
    ]


def test_without_the_larger_student_the_best_is_left_out(tool, folder):
    made = _work_off(tool, tool.Plan('digits', sizes=[20]))
    assert _rows(made, 20, 'inherit') == [tool.REAL, '0 steps', 'procedural']


def test_missing_configs_are_named_and_skipped(tool, folder):
    plan = tool.Plan('digits')
    assert set(plan.missing_rows()) == {'layout inversion', 'mixture'}
    text = tool.describe(plan, {})
    assert 'skipped  mixture: configs/digits/dfkd_mixture.py is not there' in text
    assert 'to run   digits, 40 %, inherit: layout' not in text


def test_a_plan_of_nothing_that_can_be_run_says_so(tool, folder):
    with pytest.raises(FileNotFoundError, match='dfkd_mixture.py'):
        list(tool.Plan('digits', rows=['mixture']).runs({}))


def test_the_committed_lines_are_known_runs(tool):
    lines = tool.read_lines()
    assert tool.Run('digits', 40, 'procedural', 'inherit', 0, 300) in lines
    assert all(run.size in tool.SETS[run.set].sizes for run in lines)
    # As many as there are: no two lines are taken for one run.
    assert len(lines) == len(tool.RESULTS.read_text().splitlines())


@pytest.mark.parametrize('name', ['digits', 'bccd'])
@pytest.mark.parametrize('size', [40, 20])
def test_students_are_of_their_size(tool, name, size):
    """At most that share of the teacher's parameters, and the larger window pattern is kept."""
    run = Config.fromfile(ROOT / tool.SETS[name].configs / 'dfkd_procedural.py')
    spec = {k: v for k, v in run.model.student.items() if k != 'init'} | tool.VITDET_SIZES[size]
    teacher_cfg = Config.fromfile(run.model.teacher.config)
    nets = [build_network(c) for c in (student_config(spec, teacher_cfg), teacher_cfg)]
    student, teacher = (sum(p.numel() for p in net.parameters()) for net in nets)
    assert 0.9 * size <= 100 * student / teacher <= size
    assert nets[0].backbone.arch.num_layers == 4
    assert nets[0].backbone.global_indices == (1, 3)


@pytest.mark.parametrize('init', ['inherit', 'random'])
@pytest.mark.parametrize('row', ['real (ceiling)', 'procedural', '0 steps'])
def test_options_change_what_is_there(tool, init, row):
    """Every setting of a run exists in its config, so none is misspelt."""
    for name in tool.SETS:
        run = tool.Plan(name).run(min(tool.SETS[name].sizes), row, init, 5)
        cfg = Config.fromfile(run.config)
        for option in tool.options_of(run):
            key, value = option.split('=')
            where = cfg
            for part in key.split('.'):
                where = where[int(part)] if part.isdigit() else where[part]
            assert value
        assert where is not None
    assert f'randomness.seed={run.seed}' in tool.options_of(run)


HEADS = {
    'Hungarian matching': ('EncoderMemoryHead', 'RPNResponseHead', 'HungarianQueryHead'),
    'pseudo labels': ('PseudoLabelHead',),
    'encoder memory alone': ('EncoderMemoryHead',),
}


@pytest.mark.parametrize('row', HEADS)
def test_rows_of_other_heads_differ_in_nothing_else(tool, row):
    plan = tool.Plan('digits_detr', rows=[row])
    assert plan.possible_rows() == [row] and row not in tool.Plan('digits_detr').possible_rows()
    run = plan.run(50, row, 'inherit', 0)
    own, main = (
        Config.fromfile(path).to_dict() for path in (run.config, ROOT / 'configs/dfkd_detr.py')
    )
    heads = own['model'].pop('heads')
    assert [head['type'] for head in heads] == [f'mmdfkd.{kind}' for kind in HEADS[row]]
    assert main['model'].pop('heads') != heads
    assert own == main
    # The scenes and the start that the other rows have.
    assert run.draws_scenes and row not in tool.OWN_START
    assert set(tool.OWN_START) <= set(tool.EXTRA_ROWS)


def test_rows_without_a_config_of_the_set_are_skipped(tool):
    plan = tool.Plan('digits', rows=['pseudo labels', tool.INVERTED])
    assert plan.possible_rows() == [tool.INVERTED]
    assert 'skipped  pseudo labels: configs/digits/dfkd_pseudo.py is not' in tool.describe(plan, {})


def test_another_folder_of_the_set_reaches_every_file(tool):
    run = tool.Run('bccd', 40, tool.REAL, 'inherit', 0, 300)
    cfg = Config.fromfile(run.config)
    cfg.merge_from_dict(moved(cfg, '/elsewhere/cells'))
    for split in ('train', 'val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.data_root == '/elsewhere/cells/'
    assert cfg.test_evaluator.ann_file == '/elsewhere/cells/annotations/instances_test.json'
    # Which the lines do not show.
    benchmark = tool.Benchmark(ROOT / 'work_dirs' / 'x', 'work_dirs/x', '/elsewhere/cells')
    command = tool.command_of(run, benchmark.root / run.name, '/elsewhere/cells')
    assert '/elsewhere' in ' '.join(command)
    shown = benchmark._shown(command)
    assert 'DATA_ROOT/annotations' in shown
    assert '/elsewhere' not in shown and str(ROOT) not in shown


def test_a_missing_set_is_told_before_the_first_run(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'test split of bccd.*--data-root'):
        tool.check_files(tool.Plan('bccd'), str(tmp_path))


def test_dry_run_prints_the_plan(tool, folder, capsys):
    tool.main(['--set', 'digits', '--dry-run', '--sizes', '40'])
    text = capsys.readouterr().out
    assert 'to run   digits, 40 %, inherit: real (ceiling), 300 steps, seed 0' in text
    assert not tool.RESULTS.exists()
