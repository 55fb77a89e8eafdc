"""What kinds of images are worth: one classifier's students side by side, on one budget.

    python tools/benchmarks/sources.py --set cifar10 --preset quick --data-root <folder of the set>
    python tools/benchmarks/sources.py --set mnist --preset quick --data-root <folder of the set>
    python tools/benchmarks/sources.py --set digits

One teacher, one student of half its parameters, one budget: how often an image goes through the
teacher, to make images and to train on them, an image with a gradient to its pixels counted twice.
A source that asks the teacher more leaves fewer training steps, so the steps of a row follow from
its config (mmdfkd.evaluation.teacher_passes) and nothing else differs between rows. What was asked
in fact is counted in the run and stands in its line. Inherited students start alike: the start is
made once, on procedural images, and is the row of 0 steps; what it asks of the teacher is the same
for every row and not in the budget.

A finished run is one line of docs/results/sources.jsonl, written at once; a run whose line is there
is not repeated, so an interrupted benchmark goes on. Runs are made side by side, one a core
(--jobs), which is sooner done than one after the other on all of them. The test split is read to
test finished students and for nothing else.

quick: one seed, the rows of images that are named below, each from a random and from an inherited
start (noise and the two generators: random alone).
full: three seeds, a larger budget, every source and prior: further generators, the first paper with
its own losses, other textures, a mixture of sources, images kept and replayed, inversion from
noise, on a part of the patches and with each prior alone, refinement against the student; for long
runs.
What cannot have a row is in WITHOUT_ROW: FolderSource, say, takes a folder of somebody's images.
One of tools/synthesize.py's would hold what another row's source has made, on passes that the row
would not count.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.evaluation.benchmark import (
    finished_runs,
    measure_run,
    measured_once,
    moved_options,
    one_at_a_time,
    plan_text,
    run_command,
    run_options,
    seconds_a_step,
    shown_command,
    train_command,
)
from mmdfkd.evaluation.side_by_side import SideBySide, add_jobs_option
from mmdfkd.utils.launch import fail_clearly, use_all_cores

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'sources.jsonl'

REAL = 'real (ceiling)'
NOISE = 'noise'
PROCEDURAL = 'procedural'
REFINED = 'procedural + refinement'
INVERTED = 'inversion'
GENERATOR = 'transformer generator'
DAFL = 'DAFL'
START = '0 steps'
# The ceiling first: the other rows are measured against it.
ROWS = {
    REAL: 'dfkd_real.py',
    PROCEDURAL: 'dfkd_procedural.py',
    REFINED: 'dfkd_refined.py',
    INVERTED: 'dfkd_inverted.py',
    'mixture': 'dfkd_mixture.py',
    GENERATOR: 'dfkd_generator.py',
    DAFL: 'dfkd_dafl.py',
    NOISE: 'dfkd_noise.py',
}
RANDOM_ONLY = (NOISE, GENERATOR, DAFL)
PAPER = 'first paper'
# Further rows of the full preset, and what they change in the generator row. Methods that make
# images once an epoch of 400 steps do so more often here, since a run has few such epochs.
PRESETS: dict[str, dict[str, Any]] = {
    'ZSKT': dict(preset='zskt'),
    'DFAD': dict(preset='dfad'),
    'DFQ': dict(preset='dfq'),
    'Fast': dict(preset='fast', every=50, bank=dict(capacity=4096)),
    'NAYER': dict(
        preset='nayer', every=50, first=4, steps=20, bank=dict(capacity=4096), noisy=True
    ),
}
_HARD = dict(type='mmdfkd.TargetPrior', weight=1.0)
_TERMS: dict[str, dict[str, Any]] = {
    'total variation': dict(type='mmdfkd.TotalVariationPrior', weight=0.02),
    'patch boundary': dict(type='mmdfkd.PatchBoundaryPrior', weight=1.0),
    'patch similarity': dict(type='mmdfkd.PatchSimilarityPrior', weight=0.1),
    'patch similarity KDE': dict(type='mmdfkd.PatchSimilarityPrior', weight=0.1, form='kde'),
    'attention': dict(type='mmdfkd.AttentionPrior', weight=0.5),
    'attention focus': dict(type='mmdfkd.AttentionFocusPrior', weight=0.5),
    'inter-head': dict(type='mmdfkd.InterHeadPrior', weight=1.0),
    'information entropy': dict(type='mmdfkd.InformationEntropyPrior', weight=1.0),
    'contrastive': dict(type='mmdfkd.ContrastivePrior', weight=0.8),
    'boundary preserving': dict(type='mmdfkd.BoundaryPreservingPrior', weight=1.0),
}
#: Further rows of the full preset, and what they change in the inversion row: the class alone or
#: with one more term, weighted as in the teacher's report; and the sparse modes.
INVERSIONS: dict[str, dict[str, Any]] = {
    'class alone': dict(priors=[_HARD]),
    'soft class': dict(priors=[dict(type='mmdfkd.ClassPrior', weight=1.0, mode='soft')]),
    # In the place of the class.
    'sub-boxes': dict(priors=[dict(type='mmdfkd.SubBoxPrior', weight=1.0)]),
    **{name: dict(priors=[_HARD, term]) for name, term in _TERMS.items()},
    'from noise': dict(source=None, start='noise'),
    'patch dropping': dict(sparse=dict(type='mmdfkd.PatchDropping')),
    'patch rebirth': dict(sparse=dict(type='mmdfkd.PatchRebirth')),
}
_GLYPHS = [dict(type='mmdfkd.GlyphRenderer', ground=ground) for ground in ('dark', 'light', 'any')]
_TEXTURES = dict(type='mmdfkd.CombinedRenderer')
#: Further rows of the full preset: the row whose source each changes, and how. ``around`` puts that
#: source into another one, ``beside`` mixes it half and half with that of another row.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    f'{PROCEDURAL}, textures': (PROCEDURAL, dict(renderer=[_TEXTURES])),
    f'{PROCEDURAL}, glyphs': (PROCEDURAL, dict(renderer=_GLYPHS)),
    f'{PROCEDURAL}, textures + glyphs': (PROCEDURAL, dict(renderer=[_TEXTURES, *_GLYPHS])),
    # Terms against the student: they rest before it trains, so a set made once has no use for them.
    **{
        f'refinement, {name}': (REFINED, dict(priors=[_HARD, term]))
        for name, term in {
            'divergence': dict(type='mmdfkd.DivergencePrior', weight=1.0),
            'Jensen-Shannon': dict(type='mmdfkd.JensenShannonPrior', weight=0.2),
            'logit distance': dict(type='mmdfkd.LogitDistancePrior', weight=0.1),
        }.items()
    },
    f'{GENERATOR}, attention consistency': (
        GENERATOR,
        dict(
            priors=[
                dict(type='mmdfkd.ClassPrior', weight=0.05, mode='self'),
                dict(type='mmdfkd.InformationEntropyPrior', weight=5.0),
                dict(type='mmdfkd.AttentionConsistencyPrior', weight=0.5),
            ]
        ),
    ),
    # A generator forgets: some of its images are kept from the first step on.
    f'{DAFL}, replayed': (DAFL, dict(around=dict(type='mmdfkd.ReplaySource', prefill=0))),
    f'{DAFL} + {PROCEDURAL}': (DAFL, dict(beside=PROCEDURAL)),
}
EXTRA_ROWS = (PAPER, *PRESETS, *(f'{INVERTED}, {name}' for name in INVERSIONS), *OTHERS)
#: Sources and priors that no row shows, and why.
WITHOUT_ROW = {
    'FolderSource': "somebody's images, where there are some; with it a run is not data-free",
    'LayoutInversionSource': 'scenes of a detector: tools/benchmarks/detectors.py',
    'BatchNormPrior': 'these teachers have no batch norms',
}
INITS = ('random', 'inherit')
METRIC = 'accuracy'
# What is known of the teacher, beside the runs.
TEACHER = 'teacher_{}.json'
# Steps of the first schedule of every run's config, which stay; the second one takes the rest.
WARMUP = 50


@dataclass(frozen=True)
class BenchmarkSet:
    """Where a set's runs are, and what is the set's own.

    Attributes:
        configs: Folder of the configs.
        budget: Passes of the teacher of one run, by preset.
        paper: Config of the first paper, where there is one.
        make: How the set is got.
    """

    configs: str
    budget: Mapping[str, int]
    paper: str | None = None
    make: str = 'lay it out as an image folder (see {readme}) or name its folder with --data-root'


# Meant for an hour a set on two cores, two runs at a time.
SETS = {
    'cifar10': BenchmarkSet(
        'configs/cifar10', dict(quick=48_000, full=480_000), 'configs/dfkt/cifar10_vit.py'
    ),
    'mnist': BenchmarkSet(
        'configs/mnist', dict(quick=48_000, full=480_000), 'configs/dfkt/mnist_vit.py'
    ),
    'digits': BenchmarkSet(
        'configs/digits_deit',
        dict(quick=60_000, full=600_000),
        make='run tools/dataset_converters/digits_classification.py',
    ),
}
SEEDS = dict(quick=(0,), full=(0, 1, 2))
# A random student starts far from its teacher; the first paper's batches are four times as large.
RANDOM_RATE, PAPER_RATE = 1e-3, 2e-3


@dataclass(frozen=True)
class Run:
    """One line of the results, done or not: what identifies it."""

    set: str
    row: str
    init: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Name of its work directory."""
        row = self.row.split(' (')[0]
        for old, new in ((' + ', '_'), (', ', '_'), (' ', '_')):
            row = row.replace(old, new)
        return f'{self.set}_{row}_{self.init}_{self.steps}_s{self.seed}'.lower()

    def __str__(self) -> str:
        steps = '' if self.row == START else f', {self.steps} steps'
        return f'{self.set}, {self.init}: {self.row}{steps}, seed {self.seed}'


def identity(line: Mapping[str, Any]) -> Run:
    """The run that a line of the results is of."""
    return Run(line['set'], line['row'], line['init'], line['seed'], line['steps'])


def read_lines() -> dict[Run, dict[str, Any]]:
    """The finished runs."""
    return finished_runs(RESULTS, identity)


# Rows and their configs --------------------------------------------------------------------------


def base_config(set_name: str, row: str) -> Path | None:
    """The committed config that a row is made of; a start is the procedural row's."""
    own = SETS[set_name]
    if row == PAPER:
        return ROOT / own.paper if own.paper else None
    if row in PRESETS:
        row = GENERATOR
    elif row in OTHERS:
        row = OTHERS[row][0]
    elif row.startswith(f'{INVERTED}, '):
        row = INVERTED
    return ROOT / own.configs / ROWS.get(row, ROWS[PROCEDURAL])


def changes_of(set_name: str, row: str) -> dict[str, Any]:
    """What a further row changes in its base config's source, a copy; nothing for the others."""
    if row in OTHERS:
        return other_changes(set_name, row)
    if row in PRESETS:
        changes = dict(PRESETS[row])
        if changes.pop('noisy', False):
            cfg = Config.fromfile(base_config(set_name, row))
            classes = len(cfg.train_dataloader.dataset.metainfo.classes)
            changes['generator'] = dict(noisy_layers=-(-cfg.model.source.batch // classes))
        return changes
    if row.startswith(f'{INVERTED}, '):
        return deepcopy(INVERSIONS[row.removeprefix(f'{INVERTED}, ')])
    return {}


def other_changes(set_name: str, row: str) -> dict[str, Any]:
    """What a row of :data:`OTHERS` changes in its base config's source."""
    base, changes = OTHERS[row]

    def source_of(name: str) -> dict[str, Any]:
        return Config.fromfile(base_config(set_name, name)).model.source.to_dict()

    if 'around' in changes:
        return dict(_delete_=True, source=source_of(base), **deepcopy(changes['around']))
    if 'beside' in changes:
        sources = [source_of(changes['beside']), source_of(base)]
        return dict(_delete_=True, type='mmdfkd.MixtureSource', sources=sources)
    return deepcopy(changes)


def row_config(set_name: str, row: str, folder: Path) -> Path:
    """The config of a row; of a further one it is written to ``folder``."""
    base, changes = base_config(set_name, row), changes_of(set_name, row)
    if not changes:
        return base
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{Run(set_name, row, "config", 0, 0).name}.py'
    path.write_text(
        f'# The row {row!r} of tools/benchmarks/sources.py.\n'
        f'_base_ = {base.as_posix()!r}\n'
        f'model = dict(source={changes!r})\n'
    )
    return path


@cache
def steps_of(set_name: str, row: str, budget: int) -> int:
    """Training steps that the budget leaves a row.

    Raises:
        ValueError: If it leaves none beyond the warm-up.
    """
    from mmdfkd.distillers import build_network
    from mmdfkd.evaluation.teacher_passes import teacher_passes
    from mmdfkd.registry import MODELS

    cfg = Config.fromfile(base_config(set_name, row))
    cfg.merge_from_dict(dict(model=dict(source=changes_of(set_name, row))))
    size = cfg.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    passes = teacher_passes(
        MODELS.build(cfg.model.source),
        build_network(Config.fromfile(cfg.model.teacher.config)),
        size,
    )
    steps = passes.steps_within(budget, cfg.train_dataloader.batch_size)
    if steps <= WARMUP:
        raise ValueError(
            f'{set_name}, {row}: {budget} passes leave {steps} training steps, not more than the '
            f'{WARMUP} of the warm-up: raise --passes.'
        )
    return steps


@dataclass(frozen=True)
class Plan:
    """Which runs are asked for.

    Attributes:
        set: Name of the set.
        preset: ``quick`` or ``full``.
        rows: Rows; None takes the preset's.
        inits: Starts.
        seeds: Seeds.
        passes: Budget of a run; None takes the set's.
    """

    set: str
    preset: str = 'quick'
    rows: Sequence[str] | None = None
    inits: Sequence[str] = INITS
    seeds: Sequence[int] = field(default=(0,))
    passes: int | None = None

    @property
    def budget(self) -> int:
        """Passes of the teacher that a run may take."""
        return self.passes or SETS[self.set].budget[self.preset]

    def wanted(self) -> tuple[str, ...]:
        """The rows that are asked for, in the order of :data:`ROWS`."""
        known = (*ROWS, *EXTRA_ROWS)
        preset = ROWS if self.preset == 'quick' else known
        return tuple(row for row in known if row in (self.rows or preset))

    def missing_rows(self) -> dict[str, str]:
        """Rows that cannot be run, and why."""
        missing = {}
        for row in self.wanted():
            path = base_config(self.set, row)
            if path is None:
                missing[row] = f'there is no such config for {self.set}'
            elif not path.is_file():
                missing[row] = f'{path.relative_to(ROOT)} is not there'
        return missing

    def run(self, row: str, init: str, seed: int) -> Run:
        """One run of the plan."""
        steps = 0 if row == START else steps_of(self.set, row, self.budget)
        return Run(self.set, row, init, seed, steps)

    def rows_of(self, init: str) -> list[str]:
        """The rows of a start that can be run, in order.

        Raises:
            FileNotFoundError: If no row can be run from any start.
        """
        missing = self.missing_rows()
        rows = [row for row in self.wanted() if row not in missing]
        if not rows:
            raise FileNotFoundError(f'No row can be run: {"; ".join(missing.values())}.')
        return [row for row in rows if init == 'random' or self.inherits(row)]

    def first_runs(self, init: str, seed: int) -> list[Run]:
        """What the others of a start and seed need: their ceiling, and the start itself."""
        first = [self.run(row, init, seed) for row in self.rows_of(init)[:1]]
        return first + ([self.run(START, init, seed)] if first and init == 'inherit' else [])

    def runs(self) -> Iterator[Run]:
        """Every run, in the order they are made.

        Raises:
            FileNotFoundError: If no row can be run.
        """
        for seed in self.seeds:
            for init in self.inits:
                yield from self.first_runs(init, seed)
                for row in self.rows_of(init)[1:]:
                    yield self.run(row, init, seed)

    def needs(self, run: Run) -> list[Run]:
        """Runs of the plan whose lines have to be there before a run."""
        first = self.first_runs(run.init, run.seed)
        return [] if run in first else first

    def part(self, run: Run) -> tuple[str, ...]:
        """Options that limit the tool to a run; a start is made with the first row."""
        row = self.rows_of(run.init)[0] if run.row == START else run.row
        return '--rows', row, '--inits', run.init, '--seeds', str(run.seed)

    @staticmethod
    def inherits(row: str) -> bool:
        """Whether a row has an inherited student, too."""
        base = OTHERS[row][0] if row in OTHERS else row
        return base not in RANDOM_ONLY and row != PAPER and row not in PRESETS


def next_run(plan: Plan, lines: Mapping[Run, Mapping]) -> Run | None:
    """The first run of a plan that has no line yet."""
    return next((run for run in plan.runs() if run not in lines), None)


def estimate(run: Run, lines: Mapping[Run, Mapping]) -> float | None:
    """Seconds a run will take, by the lines of its row, or else of any row of its set."""
    rate = seconds_a_step(
        lines,
        lambda known: (known.set, known.row) == (run.set, run.row),
        lambda known: known.set == run.set,
    )
    # A start is made in little time, and once.
    return 0.0 if run.row == START else rate and run.steps * rate


def describe(plan: Plan, lines: Mapping[Run, Mapping]) -> str:
    """The plan as text: what is done, what is to do and about how long it takes."""
    text = plan_text(
        plan.runs(), lines, lambda run: estimate(run, lines), METRIC, plan.missing_rows()
    )
    return f'{plan.budget} passes of the teacher for every run\n{text}'


def check_files(plan: Plan, data_root: str | None) -> None:
    """Refuse to start without the set or the teacher.

    Raises:
        FileNotFoundError: Names what is missing and how to get it.
    """
    own = SETS[plan.set]
    readme = f'{own.configs}/README.md'
    cfg = Config.fromfile(base_config(plan.set, REAL))
    root = Path(data_root or cfg.data_root)
    needed = dict(test=cfg.test_dataloader.dataset.data_prefix)
    if REAL in plan.wanted():
        needed['train'] = cfg.train_dataloader.dataset.data_prefix
    for split, name in needed.items():
        if not (root / name).is_dir():
            raise FileNotFoundError(
                f'The {split} split of {plan.set}, {root / name}, is not there: '
                f'{own.make.format(readme=readme)}.'
            )
    checkpoint = Path(cfg.model.teacher.checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f'The teacher of {plan.set}, {checkpoint}, is not there: see {readme} for how it is '
            'trained.'
        )


def options_of(
    run: Run, config: Path, data_root: str | None = None, start: Path | None = None
) -> list[str]:
    """What a run changes in its row's config.

    Args:
        run (Run): The run.
        config (Path): The row's.
        data_root (str, optional): Folder of the set.
        start (Path, optional): Weights that an inherited student starts from.
    """
    rate = PAPER_RATE if run.row == PAPER else RANDOM_RATE
    return [
        *run_options(run.steps, WARMUP, run.seed, start or run.init),
        *([f'optim_wrapper.optimizer.lr={rate:g}'] if run.init == 'random' else ()),
        *moved_options(config, data_root),
    ]


# The runs ----------------------------------------------------------------------------------------


@dataclass
class Benchmark:
    """Makes runs and writes their lines.

    Attributes:
        plan: Which runs.
        root: Where the work directories are.
        shown: The same as it is shown in the lines.
        data_root: Where the set is, if elsewhere than its config says.
        teacher: Its accuracy and parameters, once measured.
    """

    plan: Plan
    root: Path
    shown: str
    data_root: str | None = None
    teacher: tuple[float, int] | None = None

    def make(self, run: Run, lines: Mapping[Run, Mapping]) -> dict[str, Any]:
        """Make one run and append its line.

        Returns:
            dict: The line.
        """
        from mmdfkd.evaluation import append_result

        start = run.row == START
        work_dir = self.root / run.name
        weights = None
        if start or run.init == 'inherit':
            begin = self._started(run.seed)
            work_dir, weights = (begin, None) if start else (work_dir, begin / 'student_start.pth')
        command = self._command(run, work_dir, weights)
        if not start:
            self._train(run, work_dir, command)
        facts = json.loads((work_dir / 'run.json').read_text())
        passes = json.loads((work_dir / 'teacher_passes.json').read_text())
        if self.teacher is None:
            config, weights = 'teacher_config.py', facts['teacher_checkpoint']
            self.teacher = measured_once(
                self.root / TEACHER.format(run.set),
                weights,
                work_dir / config,
                lambda: self._measure(work_dir, weights, config),
            )
        student = 'student_start.pth' if start else 'student.pth'
        accuracy, parameters = self._measure(work_dir, str(work_dir / student))
        seconds = facts['seconds'] if not start else (facts['inheritance'] or {}).get('seconds', 0)
        line = dict(
            benchmark=RESULTS.stem,
            set=run.set,
            student=round(parameters / self.teacher[1], 4),
            row=run.row,
            init=run.init,
            seed=run.seed,
            metrics={METRIC: accuracy},
            teacher=self.teacher[0],
            ceiling=self._ceiling(run, lines, accuracy),
            steps=0 if start else facts['steps'],
            seconds=round(seconds, 1),
            threads=facts['threads'],
            commit=facts['commit'],
            command=self._shown(command),
            synthesis_seconds=0.0 if start else facts['synthesis_seconds'],
            teacher_passes=passes['start' if start else 'all'],
        )
        if identity(line) != run:
            raise ValueError(f'The line of {run} would be taken for {identity(line)}.')
        append_result(RESULTS, **line)
        return line

    def _command(self, run: Run, work_dir: Path, start: Path | None = None) -> list[str]:
        """The train tool's command of a run."""
        config = row_config(run.set, run.row, self.root)
        options = options_of(run, config, self.data_root, start)
        name = config.relative_to(ROOT).as_posix() if config.is_relative_to(ROOT) else str(config)
        return train_command(name, work_dir, options)

    def _train(self, run: Run, work_dir: Path, command: Sequence[str]) -> None:
        run_command(command, ROOT, work_dir.with_name(work_dir.name + '.log'), run)

    def _started(self, seed: int) -> Path:
        """Work directory with the inherited start of a seed, which is made if it is not there."""
        run = Run(self.plan.set, START, 'inherit', seed, 0)
        work_dir = self.root / run.name
        # Runs side by side may all need it, where its line is there and its folder is not.
        with one_at_a_time(work_dir):
            if not (work_dir / 'run.json').is_file():
                self._train(run, work_dir, self._command(run, work_dir))
        return work_dir

    @staticmethod
    def _measure(work_dir: Path, checkpoint: str, config: str = 'student_config.py') -> tuple:
        """Accuracy of a network on the test split in percent, and its number of parameters."""
        found, parameters = measure_run(work_dir, checkpoint, config)
        return round(found['top1'], 4), parameters

    def _shown(self, command: Sequence[str]) -> str:
        """A command without the machine's paths."""
        folders = {str(self.root): self.shown}
        if self.data_root:
            folders[os.path.join(self.data_root, '')] = 'DATA_ROOT/'
        return shown_command(command, folders)

    def _ceiling(self, run: Run, lines: Mapping[Run, Mapping], accuracy: float) -> float | None:
        """What the real images gave the same student on the same budget."""
        if run.row == REAL:
            return accuracy
        line = lines.get(self.plan.run(REAL, run.init, run.seed))
        return line and line['metrics'][METRIC]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--set', choices=SETS, default='digits')
    parser.add_argument('--preset', choices=SEEDS, default='quick')
    parser.add_argument(
        '--rows', nargs='+', choices=[*ROWS, *EXTRA_ROWS], help="the preset's by default"
    )
    parser.add_argument('--inits', nargs='+', choices=INITS, default=list(INITS))
    parser.add_argument('--seeds', nargs='+', type=int, help="the preset's by default")
    parser.add_argument(
        '--passes', type=int, help="budget of a run; the set's and preset's by default"
    )
    parser.add_argument('--data-root', help="folder of the set; the configs' data_root by default")
    parser.add_argument('--work-dir', default='work_dirs/benchmark_sources')
    add_jobs_option(parser)
    parser.add_argument('--dry-run', action='store_true', help='print the plan and stop')
    args = parser.parse_args(argv)
    if args.passes is not None and args.passes < 1:
        parser.error('--passes must be at least 1')
    return args


def tell(run: Run, line: Mapping[str, Any]) -> None:
    """Say what a run gave."""
    print(
        f'{run}: {line["metrics"]} of {line["teacher"]}, ceiling {line["ceiling"]}, '
        f'{line["teacher_passes"]} passes of the teacher',
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and say what each run gave."""
    args = parse_args(argv)
    seeds = tuple(args.seeds or SEEDS[args.preset])
    plan = Plan(args.set, args.preset, args.rows, args.inits, seeds, args.passes)
    print(describe(plan, read_lines()), flush=True)
    if args.dry_run:
        return
    data_root = str(Path(args.data_root).resolve()) if args.data_root else None
    check_files(plan, data_root)
    root = Path(args.work_dir).resolve()
    root.mkdir(parents=True, exist_ok=True)
    if args.jobs > 1:
        common = ['--set', args.set, '--preset', args.preset, '--work-dir', args.work_dir]
        for name in ('passes', 'data_root'):
            if (value := getattr(args, name)) is not None:
                common += [f'--{name.replace("_", "-")}', str(value)]
        SideBySide(
            tool=Path(__file__),
            common=common,
            left=lambda: [run for run in plan.runs() if run not in read_lines()],
            part=plan.part,
            needs=plan.needs,
            done=lambda run: tell(run, read_lines()[run]),
            jobs=args.jobs,
            logs=root,
        ).run()
        return
    use_all_cores()
    benchmark = Benchmark(plan, root, args.work_dir, data_root)
    while (run := next_run(plan, lines := read_lines())) is not None:
        tell(run, benchmark.make(run, lines))


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
