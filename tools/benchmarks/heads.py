"""What heads are worth beyond the answers: students that differ in nothing but their heads.

    python tools/benchmarks/heads.py --data-root <folder of CIFAR-10>
    python tools/benchmarks/heads.py --preset full --data-root <folder of CIFAR-10>

One teacher, one student of half its parameters (narrower and shallower), one number of steps; once
on the teacher's real training images, once data-free, on the images of configs/cifar10/dfkd_vit.py.
A row is a config of a method, configs/<method>/; of it the heads are taken. No label of the set is
read: 'labels only' learns the teacher's first class of each image, for real images too. The one
exception is the baseline without a teacher, 'true labels', on real images.
The student starts at random unless --inits says otherwise: an inherited one knows its teacher's
features already.

A finished run is one line of docs/results/heads.jsonl, written at once; a run whose line is there
is not repeated, so an interrupted benchmark goes on; runs are made side by side, one a core
(--jobs). ``over_kl`` is the accuracy beyond that of KL alone of the same student, images, start
and seed; its deviation over seeds is what a gain has to be held against. The ceiling of a data-free
run is the same heads on the real images. The test split is read to test finished students and for
nothing else.

quick: one seed, 400 steps, the rows named first.
full: three seeds, 4,000 steps, every row that a random student can have, the methods that need a
student of their own, and those of inherited students beside KL of one; for long runs.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.evaluation.benchmark import (
    finished_runs,
    measure_run,
    measured_once,
    moved_options,
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
RESULTS = ROOT / 'docs' / 'results' / 'heads.jsonl'
CONFIGS = ROOT / 'configs'
SUFFIX = '_vit128_to_vit96_cifar10.py'
REAL_CONFIG = CONFIGS / 'cifar10' / 'dfkd_real.py'
MAIN_CONFIG = CONFIGS / '_base_' / 'methods_cifar10.py'

KL = 'KL'
# What the quick preset has; KL first, which the others are measured against. A name is a config of
# configs/<method>/ without what all of them end in.
QUICK_ROWS = {
    KL: 'kd/kd',
    'labels only': 'kd/hard-label',
    'KL + manifold': 'manifold/manifold',
    'KL + probe': 'attention_probe/probe',
    'KL + ViTKD': 'vitkd/vitkd',
    'KL + TaT': 'tat/tat',
    'KL + aligned features': 'fitnets/last-features',
}
FULL_ROWS = {
    **QUICK_ROWS,
    # In place of KL.
    'DKD': 'dkd/dkd',
    'NKD': 'nkd/nkd',
    'DIST': 'dist_kd/dist',
    'standardised logits': 'logit_standardization/logit-standardization',
    'sparse labels': 'tinyvit/tinyvit',
    # Beside KL.
    'KL + Attention Probe': 'attention_probe/attention-probe',
    'KL + FitNets': 'fitnets/fitnets',
    'KL + every block': 'fitnets/every-block',
    'KL + SimReg': 'simreg/simreg',
    'KL + MGD': 'mgd/mgd',
    'KL + CWD': 'cwd/cwd',
    'KL + MiniViT': 'minivit/minivit',
    'KL + self-similarity': 'self_similarity/self-similarity',
    'KL + RKD': 'rkd/rkd',
    'KL + attention': 'attention/attention',
    'KL + attention consistency': 'attention/attention-consistency',
}
# Not data-free at all, and without a word of the teacher.
REAL_ROWS = {'true labels': 'kd/label'}
# These know how the student was made of its teacher.
INHERITED_ROWS = {
    'KL + channel map': 'channel_map/channel-map',
    'KL + block-wise': 'block_wise/block-wise',
    'KL + head attention': 'attention/head-attention',
}
# Methods that need a student of their own; what it has of the parameters is in its line. Before
# them KL alone of that student, which they are measured against: the config's, with other heads.
OWN_ROWS = {
    'KL, distilled ViT': 'deit/deit-hard_vit128_to_distilled-vit96_cifar10.py',
    'DeiT token, hard': 'deit/deit-hard_vit128_to_distilled-vit96_cifar10.py',
    'DeiT token, soft': 'deit/deit-soft_vit128_to_distilled-vit96_cifar10.py',
    'Co-advise': 'co_advise/co-advise_vit128-resnet18-c16_to_distilled-vit96_cifar10.py',
    'KL, classifier kept': 'simkd/simkd_vit128_to_simkd-vit88_cifar10.py',
    'SimKD': 'simkd/simkd_vit128_to_simkd-vit88_cifar10.py',
    'KL, projector kept': 'lift/lift_vit128_to_lift-vit88_cifar10.py',
    'Lift': 'lift/lift_vit128_to_lift-vit88_cifar10.py',
    'KL, wide last block': 'lift/widelast_vit128_to_widelast-vit64_cifar10.py',
    'WideLast': 'lift/widelast_vit128_to_widelast-vit64_cifar10.py',
    'KL, CNN': 'cross_architecture/cross-architecture_vit128_to_resnet18-c11_cifar10.py',
    'ViT to CNN': 'cross_architecture/cross-architecture_vit128_to_resnet18-c11_cifar10.py',
}
# Likewise, made of their teacher whole.
OWN_INHERITED_ROWS = {
    'KL, slimmed': 'sit/sit_vit128_to_sit128_cifar10.py',
    'SiT': 'sit/sit_vit128_to_sit128_cifar10.py',
    'KL, shared weights': 'minivit/minivit_vit128_to_mini-vit128_cifar10.py',
    'MiniViT, shared weights': 'minivit/minivit_vit128_to_mini-vit128_cifar10.py',
}
OWN_CONFIGS = OWN_ROWS | OWN_INHERITED_ROWS
# KL alone of the student of each.
OWN_KL = {
    'DeiT token, hard': 'KL, distilled ViT',
    'DeiT token, soft': 'KL, distilled ViT',
    'Co-advise': 'KL, distilled ViT',
    'SimKD': 'KL, classifier kept',
    'Lift': 'KL, projector kept',
    'WideLast': 'KL, wide last block',
    'ViT to CNN': 'KL, CNN',
    'SiT': 'KL, slimmed',
    'MiniViT, shared weights': 'KL, shared weights',
}
KL_ROWS = {KL, *OWN_KL.values()}
ROWS = FULL_ROWS | REAL_ROWS | INHERITED_ROWS | OWN_CONFIGS
# What full makes of inherited students.
INHERITED_PLAN = (KL, *INHERITED_ROWS, *OWN_INHERITED_ROWS)
IMAGES = ('real', 'data-free')
INITS = ('random', 'inherit')
SEEDS = dict(quick=(0,), full=(0, 1, 2))
STEPS = dict(quick=400, full=4000)
# Steps of the first schedule of every run's config, but no more than a quarter of a run.
WARMUP = 50
METRIC = 'accuracy'
# What is known of the teacher, beside the runs.
TEACHER = 'teacher.json'
GAIN = 'over_kl'
# Every run's, whatever the main job takes.
PROTOCOL = ('train_dataloader.batch_size=64', 'optim_wrapper.optimizer.lr=1e-3')
# A random student starts far from its teacher.
RANDOM_OPTIONS = ('optim_wrapper.optimizer.lr=2e-3',)


@dataclass(frozen=True)
class Run:
    """One line of the results, done or not: what identifies it."""

    images: str
    row: str
    init: str
    seed: int
    steps: int

    @property
    def set(self) -> str:
        """The set as it is named in the results."""
        return f'cifar10 {self.images}'

    @property
    def name(self) -> str:
        """Name of its work directory."""
        row = self.row.replace(' + ', '_').replace(', ', '_').replace(' ', '_')
        return f'{row}_{self.images}_{self.init}_{self.steps}_s{self.seed}'.lower()

    def __str__(self) -> str:
        return f'{self.set}, {self.init}: {self.row}, {self.steps} steps, seed {self.seed}'


def identity(line: Mapping[str, Any]) -> Run:
    """The run that a line of the results is of."""
    images = line['set'].split(' ')[1]
    return Run(images, line['row'], line['init'], line['seed'], line['steps'])


# Rows and their configs --------------------------------------------------------------------------


def method_config(row: str) -> Path:
    """The committed config of a row, data-free."""
    name = ROWS[row]
    return CONFIGS / (name if row in OWN_CONFIGS else f'{name}{SUFFIX}')


def kl_of(row: str) -> str:
    """The row of KL alone that a row is measured against, of the same student."""
    return row if row in KL_ROWS else OWN_KL.get(row, KL)


def row_config(run: Run, folder: Path) -> Path:
    """The config of a run; on real images, or with other heads, it is written to ``folder``."""
    path = method_config(run.row)
    alone = run.row in KL_ROWS - {KL}
    if run.row in REAL_ROWS or run.images != 'real' and not alone:
        return path
    model = Config.fromfile(path).model.to_dict()
    heads = [dict(type='mmdfkd.LogitHead')] if alone else model['heads']
    changes = dict(heads=heads, student=dict(model['student'], _delete_=True))
    if 'extra_teachers' in model and not alone:
        changes['extra_teachers'] = model['extra_teachers']
    base = REAL_CONFIG if run.images == 'real' else path
    folder.mkdir(parents=True, exist_ok=True)
    name = f'{path.stem.removesuffix(SUFFIX[:-3])}{"_kl" if alone else ""}_{run.images}.py'
    written = folder / name
    written.write_text(
        f'# {path.relative_to(ROOT).as_posix()}: {run}.\n'
        f'_base_ = {base.as_posix()!r}\n'
        f'model = dict({", ".join(f"{key}={value!r}" for key, value in changes.items())})\n'
    )
    return written


@dataclass(frozen=True)
class Plan:
    """Which runs are asked for.

    Attributes:
        preset: ``quick`` or ``full``.
        rows: Rows; None takes the preset's.
        images: Of ``real`` and ``data-free``.
        inits: Starts; None takes the preset's.
        seeds: Seeds.
        steps: Training steps of a run; None takes the preset's.
    """

    preset: str = 'quick'
    rows: Sequence[str] | None = None
    images: Sequence[str] = IMAGES
    inits: Sequence[str] | None = None
    seeds: Sequence[int] = field(default=(0,))
    steps: int | None = None

    def wanted(self, init: str) -> tuple[str, ...]:
        """The rows that are asked for and suit a start, in the order of :data:`ROWS`."""
        asked = self.rows or (QUICK_ROWS if self.preset == 'quick' else ROWS)
        unfit: Iterable[str] = OWN_ROWS
        if init == 'random':
            unfit = INHERITED_ROWS | OWN_INHERITED_ROWS
        elif self.inits is None and self.rows is None:
            asked = INHERITED_PLAN
        return tuple(row for row in ROWS if row in asked and row not in unfit)

    def runs(self) -> Iterator[Run]:
        """Every run, in the order they are made.

        Seed by seed, each whole before the next: what is interrupted has whole comparisons. Real
        images before data-free ones, whose lines name them as their ceiling.
        """
        steps = self.steps or STEPS[self.preset]
        for seed in self.seeds:
            for init in self.inits or (INITS if self.preset == 'full' else INITS[:1]):
                for images in IMAGES:
                    if images in self.images:
                        rows = self.wanted(init)
                        if images != 'real':
                            rows = [row for row in rows if row not in REAL_ROWS]
                        for row in rows:
                            yield Run(images, row, init, seed, steps)

    @staticmethod
    def needs(run: Run) -> list[Run]:
        """Runs whose lines have to be there before a run: KL alone, and the real images'."""
        rivals = (
            Run(run.images, kl_of(run.row), run.init, run.seed, run.steps),
            Run('real', run.row, run.init, run.seed, run.steps),
        )
        return [rival for rival in rivals if rival != run]

    @staticmethod
    def part(run: Run) -> tuple[str, ...]:
        """Options that limit the tool to a run."""
        return (
            *('--rows', run.row, '--images', run.images, '--inits', run.init),
            *('--seeds', str(run.seed), '--steps', str(run.steps)),
        )


def next_run(plan: Plan, lines: Mapping[Run, Mapping]) -> Run | None:
    """The first run of a plan that has no line yet."""
    return next((run for run in plan.runs() if run not in lines), None)


def describe(plan: Plan, lines: Mapping[Run, Mapping]) -> str:
    """The plan as text: what is done, what is to do and about how long it takes."""

    def seconds(run: Run) -> float | None:
        rate = seconds_a_step(
            lines,
            lambda known: (known.images, known.row) == (run.images, run.row),
            lambda known: known.images == run.images,
        )
        return rate and run.steps * rate

    return plan_text(plan.runs(), lines, seconds, METRIC, {})


def check_files(plan: Plan, data_root: str | None) -> None:
    """Refuse to start without the set or the teacher.

    Raises:
        FileNotFoundError: Names what is missing and how to get it.
    """
    cfg = Config.fromfile(REAL_CONFIG)
    root = Path(data_root or cfg.data_root)
    for split in ('test', *(('train',) if 'real' in plan.images else ())):
        if not (root / split).is_dir():
            raise FileNotFoundError(
                f'The {split} split of CIFAR-10, {root / split}, is not there: lay it out as an '
                'image folder (see configs/cifar10/README.md) or name its folder with --data-root.'
            )
    teachers = {str(cfg.model.teacher.checkpoint)}
    for row in {run.row for run in plan.runs()}:
        extra = Config.fromfile(method_config(row)).model.get('extra_teachers', ())
        teachers |= {str(teacher.checkpoint) for teacher in extra}
    for path in sorted(teachers):
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'The teacher, {path}, is not there: see the README.md beside it, or of '
                'configs/cifar10, for how it is trained.'
            )


def options_of(run: Run, config: Path, data_root: str | None = None) -> list[str]:
    """What a run changes in its row's config."""
    warmup = max(1, min(WARMUP, run.steps // 4))
    # SimKD's student starts with the teacher's classifier.
    init = Config.fromfile(config).model.student.init if run.row in OWN_CONFIGS else run.init
    return [
        *run_options(run.steps, warmup, run.seed, init),
        *(
            [f'param_scheduler.0.end={warmup}', f'param_scheduler.1.begin={warmup}']
            if warmup != WARMUP
            else ()
        ),
        *PROTOCOL,
        *(RANDOM_OPTIONS if run.init == 'random' else ()),
        *moved_options(config, data_root),
    ]


# The runs ----------------------------------------------------------------------------------------


@dataclass
class Benchmark:
    """Makes runs and writes their lines.

    Attributes:
        root: Where the work directories are.
        shown: The same as it is shown in the lines.
        out: File of the results.
        data_root: Where the set is, if elsewhere than its config says.
        teacher: Its accuracy and parameters, once measured.
    """

    root: Path
    shown: str
    out: Path = RESULTS
    data_root: str | None = None
    teacher: tuple[float, int] | None = None

    def make(self, run: Run, lines: Mapping[Run, Mapping]) -> dict[str, Any]:
        """Make one run and append its line.

        Returns:
            dict: The line.
        """
        from mmdfkd.evaluation import append_result

        work_dir = self.root / run.name
        command = self.command(run, work_dir)
        run_command(command, ROOT, work_dir.with_name(work_dir.name + '.log'), run)
        facts = json.loads((work_dir / 'run.json').read_text())
        if self.teacher is None:
            config, weights = 'teacher_config.py', facts['teacher_checkpoint']
            self.teacher = measured_once(
                self.root / TEACHER,
                weights,
                work_dir / config,
                lambda: self._measure(work_dir, weights, config),
            )
        accuracy, parameters = self._measure(work_dir, str(work_dir / 'student.pth'))
        line = dict(
            benchmark=RESULTS.stem,
            set=run.set,
            student=round(parameters / self.teacher[1], 4),
            row=run.row,
            init=run.init,
            seed=run.seed,
            metrics=self.metrics(run, lines, accuracy),
            teacher=self.teacher[0],
            ceiling=self.ceiling(run, lines, accuracy),
            steps=facts['steps'],
            seconds=round(facts['seconds'], 1),
            threads=facts['threads'],
            commit=facts['commit'],
            command=self._shown(command),
            synthesis_seconds=facts['synthesis_seconds'],
        )
        if identity(line) != run:
            raise ValueError(f'The line of {run} would be taken for {identity(line)}.')
        append_result(self.out, **line)
        return line

    def command(self, run: Run, work_dir: Path) -> list[str]:
        """The train tool's command of a run."""
        config = row_config(run, self.root)
        name = config.relative_to(ROOT).as_posix() if config.is_relative_to(ROOT) else str(config)
        return train_command(name, work_dir, options_of(run, config, self.data_root))

    @staticmethod
    def metrics(run: Run, lines: Mapping[Run, Mapping], accuracy: float) -> dict[str, float]:
        """Accuracy, and what it is beyond that of KL alone of the same student, where known."""
        rival = kl_of(run.row)
        base = lines.get(Run(run.images, rival, run.init, run.seed, run.steps))
        known = accuracy if run.row == rival else base and base['metrics'][METRIC]
        gain = {} if known is None else {GAIN: round(accuracy - known, 4)}
        return {METRIC: accuracy, **gain}

    @staticmethod
    def ceiling(run: Run, lines: Mapping[Run, Mapping], accuracy: float) -> float | None:
        """What the real images gave the same student with the same heads."""
        if run.images == 'real':
            return accuracy
        line = lines.get(Run('real', run.row, run.init, run.seed, run.steps))
        return line and line['metrics'][METRIC]

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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--preset', choices=SEEDS, default='quick')
    parser.add_argument('--rows', nargs='+', choices=tuple(ROWS), help="the preset's by default")
    parser.add_argument('--images', nargs='+', choices=IMAGES, default=list(IMAGES))
    parser.add_argument('--inits', nargs='+', choices=INITS, help="the preset's by default")
    parser.add_argument('--seeds', nargs='+', type=int, help="the preset's by default")
    parser.add_argument('--steps', type=int, help="of a run; the preset's by default")
    parser.add_argument('--data-root', help="folder of the set; the configs' data_root by default")
    parser.add_argument('--work-dir', default='work_dirs/benchmark_heads')
    add_jobs_option(parser)
    parser.add_argument(
        '--out', type=Path, default=RESULTS, help=f'file of the results, named {RESULTS.name}'
    )
    parser.add_argument('--dry-run', action='store_true', help='print the plan and stop')
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 2:
        parser.error('--steps must be at least 2')
    if args.out.name != RESULTS.name:
        parser.error(f'--out must be a file named {RESULTS.name}, not {args.out.name}')
    return args


def tell(run: Run, line: Mapping[str, Any]) -> None:
    """Say what a run gave."""
    print(f'{run}: {line["metrics"]} of {line["teacher"]}, ceiling {line["ceiling"]}', flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing and say what each run gave."""
    args = parse_args(argv)
    seeds = tuple(args.seeds or SEEDS[args.preset])
    plan = Plan(args.preset, args.rows, args.images, args.inits, seeds, args.steps)
    print(describe(plan, finished_runs(args.out, identity)), flush=True)
    if args.dry_run:
        return
    data_root = str(Path(args.data_root).resolve()) if args.data_root else None
    check_files(plan, data_root)
    root = Path(args.work_dir).resolve()
    root.mkdir(parents=True, exist_ok=True)

    def finished() -> dict[Run, dict[str, Any]]:
        return finished_runs(args.out, identity)

    if args.jobs > 1:
        common = ['--preset', args.preset, '--work-dir', args.work_dir, '--out', str(args.out)]
        if args.data_root is not None:
            common += ['--data-root', args.data_root]
        SideBySide(
            tool=Path(__file__),
            common=common,
            left=lambda: [run for run in plan.runs() if run not in finished()],
            part=plan.part,
            needs=plan.needs,
            done=lambda run: tell(run, finished()[run]),
            jobs=args.jobs,
            logs=root,
        ).run()
        return
    use_all_cores()
    benchmark = Benchmark(root, args.work_dir, args.out, data_root)
    while (run := next_run(plan, lines := finished())) is not None:
        tell(run, benchmark.make(run, lines))


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
