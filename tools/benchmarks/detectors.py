"""What images, start and size are worth: one detector's students side by side, on a set.

    python tools/benchmarks/detectors.py --set digits --preset quick
    python tools/benchmarks/detectors.py --set bccd --preset quick --data-root <folder of the set>
    python tools/benchmarks/detectors.py --set digits_detr --preset quick
    python tools/benchmarks/detectors.py --set aerial_cars --preset quick --data-root <the tiles>

Each run is the set's main job with other images, another start or a smaller student, or (rows that
have to be asked for) with other heads or another order of training; nothing else differs. Inherited
students of one size start alike: the start is made once, on the mixture's images, as are the scenes
of its layout inversion, whose seconds count for every row that draws them. A finished run is one
line of docs/results/detectors.jsonl, written at once; a run whose line is there is not repeated, so
an interrupted benchmark goes on.

quick: one seed. The main job's inherited student with every row; the smaller one, where the set has
it, and the random one with procedural images, the best data-free row, and the real images. The best
is the row of the highest mAP among the finished lines of the first: those runs are being reported,
and nothing of any run is set by it but that it is reported for the other students, too.
full: three seeds, more steps, every row with every size and start; for long runs.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.evaluation.benchmark import (
    finished_runs,
    measure_run,
    moved_options,
    plan_text,
    run_command,
    run_options,
    seconds_a_step,
    shown_command,
    train_command,
)
from mmdfkd.utils.launch import fail_clearly, use_all_cores

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'detectors.jsonl'

REAL = 'real (ceiling)'
PROCEDURAL = 'procedural'
MIXTURE = 'mixture'
INVERTED = 'layout inversion'
START = '0 steps'
BEST = 'the best data-free row'
# The ceiling first: the other rows are measured against it.
ROWS = {
    REAL: 'dfkd_real.py',
    'noise': 'dfkd_noise.py',
    PROCEDURAL: 'dfkd_procedural.py',
    'procedural + refinement': 'dfkd_refined.py',
    INVERTED: 'dfkd_inverted.py',
    MIXTURE: 'dfkd_mixture.py',
}
# Rows about the order of training or about the heads, not about the images: only where they are
# asked for. The latter are the main job with other heads, on layout inversion's scenes.
EXTRA_ROWS = {
    'mixture, features first': 'dfkd_features_first.py',
    'mixture, blocks first': 'dfkd_blocks_first.py',
    'PKD': 'dfkd_pkd.py',
    'manifold': 'dfkd_manifold.py',
    'Hungarian matching': 'dfkd_hungarian.py',
    'pseudo labels': 'dfkd_pseudo.py',
    'encoder memory alone': 'dfkd_memory.py',
}
# Of these the ones that make their start again: blocks are followed through the map of the
# inheritance, which is not in the start's file.
OWN_START = ('mixture, features first', 'mixture, blocks first')
# Most of the teacher's parameters that a student has, in percent, and what its shape changes in the
# config; the first is the config's own. Of the shapes under 20 % the second one keeps four of six
# blocks, two of them global, as 40 % has.
VITDET_SIZES: dict[int, dict[str, float]] = {
    40: {},
    20: dict(width=0.5, depth=0.67, mlp=0.4, neck=0.5, head=0.5),
}
DETR_SIZES: dict[int, dict[str, float]] = {50: {}}
INITS = ('inherit', 'random')
METRICS = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_s')
# Steps of the first schedule of every run's config, which stay; the second one takes the rest.
WARMUP = 50


@dataclass(frozen=True)
class BenchmarkSet:
    """Where a set's runs are, and what is the set's own.

    Attributes:
        configs: Folder of the configs.
        batch: Images a step.
        steps: Of an inherited student, by preset.
        random_factor: A random student takes this many times the steps.
        random_options: Settings of random students' runs: they start far from the teacher.
        sizes: The students, the main job's first; see :data:`VITDET_SIZES`.
        make: How the set is got; ``{configs}`` is its folder.
    """

    configs: str
    batch: int
    steps: Mapping[str, int]
    random_factor: float = 2.0
    random_options: tuple[str, ...] = ('optim_wrapper.optimizer.lr=2e-3',)
    sizes: Mapping[int, Mapping[str, float]] = field(default_factory=lambda: VITDET_SIZES)
    make: str = 'put the set there (see {configs}/README.md) or name its folder with --data-root'

    @property
    def size(self) -> int:
        """The main job's student."""
        return next(iter(self.sizes))


# Twice the inherited student's rate, as the other detectors' random ones.
DETR_RANDOM = ('optim_wrapper.optimizer.lr=1e-3',)
_DRAWN = 'run tools/dataset_converters/digits_detection.py'
SETS = {
    'digits': BenchmarkSet('configs/digits', 16, dict(quick=300, full=1000), make=_DRAWN),
    'bccd': BenchmarkSet('configs/bccd', 8, dict(quick=300, full=1000), random_factor=1.5),
    'digits_detr': BenchmarkSet(
        'configs/digits_detr',
        8,
        dict(quick=300, full=1000),
        random_options=DETR_RANDOM,
        sizes=DETR_SIZES,
        make=_DRAWN,
    ),
    'aerial_cars': BenchmarkSet(
        'configs/aerial_cars',
        8,
        dict(quick=200, full=1000),
        random_options=DETR_RANDOM,
        sizes=DETR_SIZES,
    ),
}
ALL_SIZES = sorted({size for own in SETS.values() for size in own.sizes}, reverse=True)
SEEDS = dict(quick=(0,), full=(0, 1, 2))


@dataclass(frozen=True)
class Run:
    """One line of the results, done or not: what identifies it."""

    set: str
    size: int
    row: str
    init: str
    seed: int
    steps: int

    @property
    def config(self) -> Path:
        """The row's config; a start is taken from the mixture's."""
        name = {**ROWS, **EXTRA_ROWS}.get(self.row, ROWS[MIXTURE])
        return ROOT / SETS[self.set].configs / name

    @property
    def start(self) -> 'Run':
        """The run that makes the start of an inherited student of this size and seed."""
        return Run(self.set, self.size, START, 'inherit', self.seed, 0)

    @property
    def draws_scenes(self) -> bool:
        """Whether its images come from layout inversion."""
        return self.row in (START, MIXTURE, INVERTED, *EXTRA_ROWS)

    @property
    def name(self) -> str:
        """Name of its work directory."""
        row = self.row.split(' (')[0].replace(' + ', '_').replace(', ', '_').replace(' ', '_')
        return f'{self.set}_{self.size}_{row}_{self.init}_{self.steps}_s{self.seed}'

    def __str__(self) -> str:
        student = f'{self.set}, {self.size} %, {self.init}'
        steps = '' if self.row == START else f', {self.steps} steps'
        return f'{student}: {self.row}{steps}, seed {self.seed}'


def identity(line: Mapping[str, Any]) -> Run:
    """The run that a line of the results is of."""
    sizes = SETS[line['set']].sizes
    size = min((s for s in sizes if line['student'] <= s / 100), default=max(sizes))
    return Run(line['set'], size, line['row'], line['init'], line['seed'], line['steps'])


def read_lines() -> dict[Run, dict[str, Any]]:
    """The finished runs."""
    return finished_runs(RESULTS, identity)


@dataclass(frozen=True)
class Plan:
    """Which runs are asked for.

    Attributes:
        set: Name of the set.
        preset: ``quick`` or ``full``.
        rows: Rows of every student; None takes the preset's.
        inits: Starts.
        sizes: Sizes in percent; those that the set does not have are left out.
        seeds: Seeds.
        steps: Of inherited students; None takes the set's.
    """

    set: str
    preset: str = 'quick'
    rows: Sequence[str] | None = None
    inits: Sequence[str] = INITS
    sizes: Sequence[int] = tuple(ALL_SIZES)
    seeds: Sequence[int] = field(default=(0,))
    steps: int | None = None

    def run(self, size: int, row: str, init: str, seed: int) -> Run:
        """One run of the plan."""
        own = SETS[self.set]
        steps = self.steps or own.steps[self.preset]
        if init == 'random':
            steps = int(steps * own.random_factor)
        return Run(self.set, size, row, init, seed, 0 if row == START else steps)

    def missing_rows(self) -> dict[str, Path]:
        """Rows that cannot be run: their config is not there."""
        configs = {row: self.run(0, row, 'inherit', 0).config for row in self.rows or ROWS}
        return {row: path for row, path in configs.items() if not path.is_file()}

    def possible_rows(self) -> list[str]:
        """The rows that are asked for and can be run, in the order of :data:`ROWS`.

        Raises:
            FileNotFoundError: If there is none.
        """
        missing = self.missing_rows()
        known = (*ROWS, *EXTRA_ROWS)
        rows = [row for row in known if row in (self.rows or ROWS) and row not in missing]
        if not rows:
            raise FileNotFoundError(
                f'No row can be run: {", ".join(map(str, missing.values()))} not there.'
            )
        return rows

    def best(self, lines: Mapping[Run, Mapping], seed: int) -> str | None:
        """The main job's best data-free row by its mAP; None while one is not done."""
        size = SETS[self.set].size
        runs = {
            row: self.run(size, row, 'inherit', seed) for row in self.possible_rows() if row != REAL
        }
        if not runs or any(run not in lines for run in runs.values()):
            return None
        return max(runs, key=lambda row: lines[runs[row]]['metrics'][METRICS[0]])

    def rows_of(
        self, size: int, init: str, seed: int, lines: Mapping[Run, Mapping]
    ) -> tuple[str, ...]:
        """The rows of one size and start; :data:`BEST` stands for a row that is not known yet."""
        rows = self.possible_rows()
        main = (SETS[self.set].size, 'inherit')
        if self.rows is not None or self.preset == 'full' or (size, init) == main:
            return tuple(rows)
        best = self.best(lines, seed)
        chosen = tuple(row for row in rows if row in (REAL, PROCEDURAL, best))
        return chosen if best else (*chosen, BEST)

    def runs(self, lines: Mapping[Run, Mapping]) -> Iterator[Run]:
        """Every run, in the order they are made.

        In quick, the small and the random student's rows depend on the finished lines.
        """
        first, *smaller = SETS[self.set].sizes
        students = [*((size, 'inherit') for size in (first, *smaller)), (first, 'random')]
        if self.preset == 'full':
            students += [(size, 'random') for size in smaller]
        for seed in self.seeds:
            for size, init in students:
                if size not in self.sizes or init not in self.inits:
                    continue
                ceiling, *rest = self.rows_of(size, init, seed, lines)
                yield self.run(size, ceiling, init, seed)
                # Its line names the ceiling, so that comes before it where it is asked for.
                if init == 'inherit':
                    yield self.run(size, START, init, seed)
                for row in rest:
                    yield self.run(size, row, init, seed)


def next_run(plan: Plan, lines: Mapping[Run, Mapping]) -> Run | None:
    """The first run of a plan that has no line yet, and of which is known what it is."""
    runs = plan.runs(lines)
    return next((run for run in runs if run not in lines and run.row != BEST), None)


def estimate(run: Run, lines: Mapping[Run, Mapping]) -> float | None:
    """Seconds a run will take, by the lines of its row, or else of any row of its set."""
    own_row, own_set = (
        lambda known, rows=rows: known.set == run.set and known.row in rows
        for rows in ((run.row,), ROWS)
    )
    rate = seconds_a_step(lines, own_row, own_set)
    # A start is made in little time, and once.
    return 0.0 if run.row == START else rate and run.steps * rate


def describe(plan: Plan, lines: Mapping[Run, Mapping]) -> str:
    """The plan as text: what is done, what is to do and about how long it takes."""
    skipped = {
        row: f'{path.relative_to(ROOT)} is not there' for row, path in plan.missing_rows().items()
    }
    return plan_text(plan.runs(lines), lines, lambda run: estimate(run, lines), METRICS[0], skipped)


def check_files(plan: Plan, data_root: str | None) -> None:
    """Refuse to start without the set or the teacher.

    Raises:
        FileNotFoundError: Names what is missing and how to get it.
    """
    config = ROOT / SETS[plan.set].configs / ROWS[PROCEDURAL]
    cfg = Config.fromfile(config)
    root = Path(data_root or cfg.data_root)
    files = dict(test=cfg.test_dataloader.dataset.ann_file)
    if REAL in plan.possible_rows():
        real = Config.fromfile(ROOT / SETS[plan.set].configs / ROWS[REAL])
        files['train'] = real.train_dataloader.dataset.ann_file
    for split, name in files.items():
        path = root / name
        if not path.is_file():
            own = SETS[plan.set]
            raise FileNotFoundError(
                f'The {split} split of {plan.set}, {path}, is not there: '
                f'{own.make.format(configs=own.configs)}.'
            )
    checkpoint = Path(cfg.model.teacher.checkpoint)
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f'The teacher of {plan.set}, {checkpoint}, is not there: see '
            f'{SETS[plan.set].configs}/README.md for how it is trained.'
        )


def options_of(
    run: Run,
    data_root: str | None = None,
    start: Path | None = None,
    scenes: Path | None = None,
) -> list[str]:
    """What a run changes in its row's config.

    Args:
        run (Run): The run.
        data_root (str, optional): Folder of the set.
        start (Path, optional): Weights that an inherited student starts from.
        scenes (Path, optional): Finished scenes, for runs that draw them.
    """
    own = SETS[run.set]
    options = [
        *run_options(run.steps, WARMUP, run.seed, start or run.init),
        f'train_dataloader.batch_size={own.batch}',
        *(f'model.student.{name}={value}' for name, value in own.sizes[run.size].items()),
    ]
    if run.row == 'mixture, blocks first':
        # In the first part alone, whatever the steps.
        options.append(f'model.heads.3.schedule.end={int(0.3 * (run.steps or 1))}')
    if scenes and run.draws_scenes:
        options.append(f'model.source.scenes={scenes}')
    if run.init == 'random':
        options += own.random_options
    return options + moved_options(run.config, data_root)


def command_of(run: Run, work_dir: Path, *options: Any) -> list[str]:
    """The ordinary train tool's command line; ``options`` as in :func:`options_of`."""
    config = run.config.relative_to(ROOT).as_posix()
    return train_command(config, work_dir, options_of(run, *options))


def train(run: Run, work_dir: Path, *options: Any) -> list[str]:
    """Run the train tool; returns its command. ``options`` as in :func:`options_of`.

    Raises:
        RuntimeError: If it fails; names its log.
    """
    command = command_of(run, work_dir, *options)
    run_command(command, ROOT, work_dir.with_name(work_dir.name + '.log'), run)
    return command


def measure(work_dir: Path, checkpoint: str, config: str = 'student_config.py') -> tuple[dict, int]:
    """Test a network of a finished run: its metrics and its number of parameters."""
    found, parameters = measure_run(work_dir, checkpoint, config)
    # mmdet's COCO metric returns nothing at all where a network detects nothing.
    found = {k: round(found.get(k, 0.0), 4) for k in METRICS}
    # COCO's -1: the set has no object of that size.
    return {k: v for k, v in found.items() if v >= 0}, parameters


@dataclass
class Benchmark:
    """Makes runs and writes their lines.

    Attributes:
        root: Where the work directories are.
        shown: The same as it is shown in the lines.
        data_root: Where the set is, if elsewhere than its config says.
        teacher: Its metrics and parameters, once measured.
    """

    root: Path
    shown: str
    data_root: str | None = None
    teacher: tuple[dict[str, float], int] | None = None

    def make(self, run: Run, lines: Mapping[Run, Mapping]) -> dict[str, Any]:
        """Make one run and append its line.

        Returns:
            dict: The line.
        """
        from mmdfkd.evaluation import append_result

        start = run.row == START
        work_dir = self.root / run.name
        if start:
            work_dir = self._started(run)
            command = command_of(run, work_dir, self.data_root, None, self._scenes(run))
        else:
            shared = run.init == 'inherit' and run.row not in OWN_START
            begin = self._started(run.start) if shared else None
            command = train(
                run,
                work_dir,
                self.data_root,
                begin and begin / 'student_start.pth',
                self._scenes(run),
            )
        facts = json.loads((work_dir / 'run.json').read_text())
        if self.teacher is None:
            self.teacher = measure(work_dir, facts['teacher_checkpoint'], 'teacher_config.py')
        student = 'student_start.pth' if start else 'student.pth'
        metrics, parameters = measure(work_dir, str(work_dir / student))
        seconds = facts['seconds'] if not start else (facts['inheritance'] or {}).get('seconds', 0)
        line = dict(
            benchmark=RESULTS.stem,
            set=run.set,
            student=round(parameters / self.teacher[1], 4),
            row=run.row,
            init=run.init,
            seed=run.seed,
            metrics=metrics,
            teacher=self.teacher[0][METRICS[0]],
            teacher_mAP_50=self.teacher[0][METRICS[1]],
            ceiling=self._ceiling(run, lines, metrics),
            steps=0 if start else facts['steps'],
            seconds=round(seconds, 1),
            synthesis_seconds=0.0 if start else round(self._synthesis_seconds(run, facts), 1),
            threads=facts['threads'],
            commit=facts['commit'],
            command=self._shown(command),
        )
        if identity(line) != run:
            raise ValueError(f'The line of {run} would be taken for {identity(line)}.')
        append_result(RESULTS, **line)
        return line

    def _started(self, start: Run) -> Path:
        """Work directory with an inherited start, which is made if it is not there."""
        work_dir = self.root / start.name
        # The last file of a run: the start itself is there before the first step.
        if not (work_dir / 'run.json').is_file():
            train(start, work_dir, self.data_root, None, self._scenes(start))
        return work_dir

    def _scenes(self, run: Run) -> Path | None:
        """Finished scenes for a run; None where none are drawn, and for the run that makes them."""
        maker = Run(run.set, SETS[run.set].size, START, 'inherit', run.seed, 0)
        if run == maker or not run.draws_scenes:
            return None
        return self._started(maker) / 'synthetic'

    def _synthesis_seconds(self, run: Run, facts: Mapping) -> float:
        """Seconds spent on a run's images, with those of the scenes it was given."""
        scenes = self._scenes(run)
        if scenes is None:
            return facts['synthesis_seconds']
        made = json.loads((scenes.parent / 'run.json').read_text())
        # Both rendered a pool.
        return max(facts['synthesis_seconds'], made['synthesis_seconds'])

    def _shown(self, command: Sequence[str]) -> str:
        """A command without the machine's paths."""
        folders = {str(self.root): self.shown}
        if self.data_root:
            folders[os.path.join(self.data_root, '')] = 'DATA_ROOT/'
        return shown_command(command, folders)

    @staticmethod
    def _ceiling(run: Run, lines: Mapping[Run, Mapping], metrics: Mapping) -> float | None:
        """What the real images gave the same student; a start has no steps to agree on."""
        if run.row == REAL:
            return metrics[METRICS[0]]
        for known, line in reversed(lines.items()):
            alike = (known.set, known.size, known.init, known.seed, known.row) == (
                *(run.set, run.size, run.init, run.seed, REAL),
            )
            if alike and run.steps in (0, known.steps):
                return line['metrics'][METRICS[0]]
        return None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--set', choices=SETS, default='digits')
    parser.add_argument('--preset', choices=SEEDS, default='quick')
    parser.add_argument(
        '--rows',
        nargs='+',
        choices=[*ROWS, *EXTRA_ROWS],
        help="of every student; the preset's by default",
    )
    parser.add_argument('--inits', nargs='+', choices=INITS, default=list(INITS))
    parser.add_argument(
        '--sizes', nargs='+', type=int, choices=ALL_SIZES, default=ALL_SIZES,
        help="most of the teacher's parameters, in percent",
    )  # fmt: skip
    parser.add_argument('--seeds', nargs='+', type=int, help="the preset's by default")
    parser.add_argument(
        '--steps', type=int, help="steps of an inherited student; the set's and preset's by default"
    )
    parser.add_argument('--data-root', help="folder of the set; the configs' data_root by default")
    parser.add_argument('--work-dir', default='work_dirs/benchmark_detectors')
    parser.add_argument('--dry-run', action='store_true', help='print the plan and stop')
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps <= WARMUP:
        parser.error(f'--steps must be more than the {WARMUP} of the warm-up')
    return args


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, one run after the other, and say what each gave."""
    args = parse_args(argv)
    seeds = tuple(args.seeds or SEEDS[args.preset])
    plan = Plan(args.set, args.preset, args.rows, args.inits, args.sizes, seeds, args.steps)
    print(describe(plan, read_lines()), flush=True)
    if args.dry_run:
        return
    data_root = str(Path(args.data_root).resolve()) if args.data_root else None
    check_files(plan, data_root)
    use_all_cores()
    root = Path(args.work_dir).resolve()
    root.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(root, args.work_dir, data_root)
    while (run := next_run(plan, lines := read_lines())) is not None:
        line = benchmark.make(run, lines)
        print(
            f'{run}: {line["metrics"]} of {line["teacher"]}, ceiling {line["ceiling"]}', flush=True
        )
    for run in plan.runs(lines):
        if run.row == BEST:
            print(f'Not made: {run}; the inherited rows of the larger student tell which that is.')


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
