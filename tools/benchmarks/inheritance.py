"""What a student's start is worth: each way to inherit, before and after training.

    python tools/benchmarks/inheritance.py
    python tools/benchmarks/inheritance.py --set cifar10 --data-root <folder of the set>

One teacher, students of 75, 50 and 25 % of its parameters. A row is a method of inheritance
(mmdfkd.inheritance.recipe_of) with one of its parts exchanged, measured at 0 steps and after some
steps on answers and last features, with the optimiser of the set's dfkd_vit.py. All students of a
seed see the same procedural images in the same order and the same answers of the teacher, which are
kept, and start from the same 512 others; nothing but the start differs. At 75 % no channel is cut
(a classifier's channels go with whole heads), so what concerns channels alone changes nothing
there.

A finished row is one line of docs/results/inheritance.jsonl, written at once; what has a line is
not repeated, so an interrupted benchmark goes on. ``accuracy`` is that on the test split, which is
read for nothing else; ``agreement`` (the teacher's first class) and ``kl`` (from teacher to
student, nats) are taken on procedural images that no student has seen.

quick: one seed, every row at 0 steps and after 100 steps of 32 images.
full: three seeds, at 0 steps and after 600 steps of 64.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.evaluation.benchmark import (
    finished_runs,
    moved,
    plan_text,
    seconds_a_step,
    shown_command,
)
from mmdfkd.utils.launch import fail_clearly, use_all_cores

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'inheritance.jsonl'

RANDOM = 'random'
_BARE = dict(method='slice', layers='uniform', units='uniform', refit='none')
#: Rows: what of the student's shape changes, in patch sizes of the teacher, and the parts.
ROWS: dict[str, dict[str, Any]] = {
    RANDOM: {},
    'select': dict(method='select'),
    'select + layers': dict(method='select', layers='output'),
    'select + channels': dict(method='select', channels='activation'),
    'select + units': dict(method='select', units='activation'),
    'select + refit of layers': dict(method='select', refit='layer'),
    'select + refit of blocks': dict(method='select', refit='block'),
    'select + all': dict(
        method='select', layers='output', channels='activation', units='activation', refit='block'
    ),
    'rotation': _BARE,
    'rotation + layers': dict(_BARE, layers='output'),
    'rotation + units by activation': dict(_BARE, units='activation'),
    'rotation + units': dict(_BARE, units='reconstruction'),
    'rotation + refit of layers': dict(_BARE, refit='layer'),
    'rotation + refit of blocks': dict(_BARE, refit='block'),
    'slice': dict(method='slice'),
    'slice, patches resampled': dict(method='slice', patches=2, refit='none'),
    'slice, patches resampled + refit': dict(method='slice', patches=2),
}
#: Shares of the teacher's parameters in percent, and what gives them.
SIZES: dict[int, dict[str, float]] = {
    75: dict(width=1, depth=0.84, mlp=0.85),
    50: dict(width=0.75, depth=0.84, mlp=0.8),
    25: dict(width=0.5, depth=0.84, mlp=0.64),
}
METRIC = 'accuracy'
# Every shape has them, whatever its blocks.
HEADS = (dict(type='mmdfkd.LogitHead'), dict(type='mmdfkd.FeatureHead'))
# Indices of the images: of the statistics, of the agreement; training begins at 0.
STATISTICS, HELD_OUT = 1 << 40, 1 << 41
# As many batches are kept with the teacher's answers; longer runs see them again.
KEPT_BATCHES = 200


@dataclass(frozen=True)
class BenchmarkSet:
    """Where a set's run is, and what it is called in the results.

    Attributes:
        config: Of the data-free run.
        name: In the results.
        make: How the set is got.
    """

    config: str
    name: str
    make: str


SETS = {
    'digits': BenchmarkSet(
        'configs/digits_deit/dfkd_vit.py',
        'digits deit',
        'run tools/dataset_converters/digits_classification.py',
    ),
    'cifar10': BenchmarkSet(
        'configs/cifar10/dfkd_vit.py',
        'cifar10',
        'lay it out as an image folder (see configs/cifar10/README.md) or name its folder with '
        '--data-root',
    ),
}
SEEDS = dict(quick=(0,), full=(0, 1, 2))
STEPS = dict(quick=100, full=600)
BATCH = dict(quick=32, full=64)
IMAGES = 512
RATES = dict(inherit=1e-3, random=2e-3)


@dataclass(frozen=True)
class Run:
    """One line of the results, done or not: what identifies it."""

    set: str
    row: str
    size: int
    seed: int
    steps: int

    @property
    def init(self) -> str:
        """Start of the student."""
        return 'random' if self.row == RANDOM else 'inherit'

    def __str__(self) -> str:
        return f'{self.set}, {self.size} %: {self.row}, {self.steps} steps, seed {self.seed}'


def identity(line: Mapping[str, Any]) -> Run:
    """The run that a line of the results is of."""
    size = min(SIZES, key=lambda s: abs(s - 100 * line['student']))
    return Run(line['set'], line['row'], size, line['seed'], line['steps'])


def read_lines() -> dict[Run, dict[str, Any]]:
    """The finished runs of this benchmark's sets."""
    names = {own.name for own in SETS.values()}
    lines = finished_runs(RESULTS, identity)
    return {run: line for run, line in lines.items() if run.set.split(',')[0] in names}


@dataclass(frozen=True)
class Plan:
    """Which runs are asked for.

    Attributes:
        set: Name of the set.
        preset: ``quick`` or ``full``.
        rows: Rows; None takes all.
        sizes: Shares of the teacher's parameters.
        seeds: Seeds.
        steps: Training steps; None takes the preset's, 0 trains nothing.
        test_images: Test on so many, evenly spread, rather than on all.
    """

    set: str
    preset: str = 'quick'
    rows: Sequence[str] | None = None
    sizes: Sequence[int] = tuple(SIZES)
    seeds: Sequence[int] = field(default=(0,))
    steps: int | None = None
    test_images: int | None = None

    @property
    def name(self) -> str:
        """The set's in the results; figures on a part of the images are no figures on all."""
        part = '' if self.test_images is None else f', {self.test_images} test images'
        return SETS[self.set].name + part

    def lengths(self, row: str) -> tuple[int, ...]:
        """Steps after which a row is measured; random students are nothing before any."""
        steps = STEPS[self.preset] if self.steps is None else self.steps
        return tuple(n for n in (0, steps) if n or row != RANDOM)

    def runs(self) -> Iterator[Run]:
        """Every run, in the order they are made."""
        for seed in self.seeds:
            for size in self.sizes:
                for row in ROWS:
                    if self.rows is None or row in self.rows:
                        for steps in dict.fromkeys(self.lengths(row)):
                            yield Run(self.name, row, size, seed, steps)


def describe(plan: Plan, lines: Mapping[Run, Mapping]) -> str:
    """The plan as text: what is done, what is to do and about how long it takes."""

    def estimate(run: Run) -> float | None:
        if not run.steps:
            known = [v['seconds'] for r, v in lines.items() if r.set == run.set and not r.steps]
            return sum(known) / len(known) if known else None
        rate = seconds_a_step(
            lines,
            lambda known: (known.set, known.size) == (run.set, run.size),
            lambda known: known.set == run.set,
        )
        return rate and run.steps * rate

    return plan_text(plan.runs(), lines, estimate, METRIC, {})


class Benchmark:
    """One set's teacher, images and answers, and the students made of them.

    Args:
        plan (Plan): Which runs.
        data_root (str, optional): Where the set is, if elsewhere than its config says.
    """

    def __init__(self, plan: Plan, data_root: str | None = None) -> None:
        self.plan, self.data_root = plan, data_root
        self.cfg = Config.fromfile(ROOT / SETS[plan.set].config)
        if data_root:
            self.cfg.merge_from_dict(moved(self.cfg, data_root))
        self._check_files()
        self._load()
        self._seed: int | None = None

    def _check_files(self) -> None:
        """Refuse to start without the set or the teacher.

        Raises:
            FileNotFoundError: Names what is missing and how to get it.
        """
        dataset = self.cfg.test_dataloader.dataset
        folder = Path(dataset.data_root) / dataset.data_prefix
        if self.data_root:
            folder = Path(self.data_root) / dataset.data_prefix
        if not folder.is_dir():
            raise FileNotFoundError(
                f'The test split of {self.plan.set}, {folder}, is not there: '
                f'{SETS[self.plan.set].make}.'
            )

    def _load(self) -> None:
        from mmengine.dataset import pseudo_collate
        from mmengine.registry import DATASETS, DefaultScope

        from mmdfkd.distillers.teacher import Teacher
        from mmdfkd.evaluation.cost import count_parameters

        self.teacher = Teacher(**self.cfg.model.teacher)
        self.teacher.load()
        with DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            import mmpretrain.datasets  # noqa: F401

            dataset = DATASETS.build(self.cfg.test_dataloader.dataset)
        count = min(self.plan.test_images or len(dataset), len(dataset))
        index = torch.linspace(0, len(dataset) - 1, count, dtype=torch.float64).round().long()
        items = [dataset[int(i)] for i in index]
        # Kept as they were read: they are the same for every student.
        self.tests = [pseudo_collate(items[i : i + 100]) for i in range(0, len(items), 100)]
        self.parameters = count_parameters(self.teacher.net)[0]
        self.accuracy = self.test(self.teacher.net)

    @torch.no_grad()
    def test(self, net) -> float:
        """Accuracy on the test images in percent, by the network's own test step."""
        net.eval()
        right = count = 0
        for batch in self.tests:
            for sample in net.test_step(dict(batch)):
                right += int(sample.pred_label.item() in sample.gt_label.tolist())
                count += 1
        return round(100 * right / count, 4)

    def _images(self, first: int, count: int, seed: int) -> torch.Tensor:
        from mmdfkd.registry import TASK_UTILS

        size = self.cfg.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        render = TASK_UTILS.build(dict(self.cfg.procedural))
        images = [torch.as_tensor(render(seed, first + i, size)) for i in range(count)]
        return torch.stack(images).float() / 255

    def prepare(self, seed: int) -> None:
        """Render what a seed's students are made, compared and trained on."""
        if self._seed == seed:
            return
        self._seed = seed
        self.statistics = self._images(STATISTICS, IMAGES, seed)
        self.held_out = list(self._images(HELD_OUT, 256, seed).split(64))
        self.batches: list[tuple] = []

    def _batch(self, step: int, student) -> tuple:
        """Images and the teacher's answers of a step; asked once."""
        step %= KEPT_BATCHES
        batch = BATCH[self.plan.preset]
        while step >= len(self.batches):
            images = self._images(batch * len(self.batches), batch, self._seed)
            needs = student.needs
            observed = self.teacher.observe(images, needs.taps_teacher, needs.teacher_response)
            self.batches.append((images, observed))
        return self.batches[step]

    # A student ------------------------------------------------------------------------------------

    def student(self, run: Run):
        """A student of a run at 0 steps, and the seconds it took."""
        from mmdfkd.adapters import Normalizer
        from mmdfkd.distillers.networks import build_network
        from mmdfkd.distillers.student import Student
        from mmdfkd.distillers.student_spec import student_config
        from mmdfkd.inheritance import inherit
        from mmdfkd.registry import MODELS

        parts = dict(ROWS[run.row])
        spec = dict(type='mmdfkd.Shrunk', **SIZES[run.size])
        if 'patches' in parts:
            spec['patch_size'] = int(
                parts.pop('patches') * self.teacher.cfg.model.backbone.patch_size
            )
        cfg = student_config(spec, self.teacher.cfg)
        torch.manual_seed(run.seed)
        net = build_network(cfg)
        heads = [MODELS.build(dict(head)) for head in HEADS]
        student = Student(net, Normalizer.from_config(cfg), heads)
        student.build_aligners(self.teacher.adapter, tuple(self.statistics.shape[-2:]))
        student.freeze_unused(self.teacher.adapter, tuple(self.statistics.shape[-2:]))
        began = time.perf_counter()
        if run.init == 'random':
            net.init_weights()
        else:
            inherit(self.teacher.adapter, student.adapter, self.statistics, **parts)
        return student, time.perf_counter() - began

    def train(self, run: Run, student) -> float:
        """Distil a student for the steps of a run; returns the seconds."""
        from mmengine.optim import build_optim_wrapper

        began = time.perf_counter()
        for head in student.heads:
            head.init_weights()
        self._fit_aligners(student)
        settings = self.cfg.optim_wrapper.copy()
        settings.optimizer = dict(settings.optimizer, lr=RATES[run.init])
        optimiser = build_optim_wrapper(student, settings)
        warmup = max(1, run.steps // 10)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimiser.optimizer,
            lambda step: (
                min(1, (step + 1) / warmup)
                * (0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / (run.steps - warmup)))
            ),
        )
        from mmdfkd.adapters import Targets

        student.train()
        for step in range(run.steps):
            images, observed = self._batch(step, student)
            losses = student(images, observed, Targets())
            optimiser.update_params(sum(losses.values()))
            scheduler.step()
        student.eval()
        return time.perf_counter() - began

    @torch.no_grad()
    def _fit_aligners(self, student) -> None:
        from mmdfkd.adapters import Observation

        student.eval()
        needs, images = student.needs, self.statistics[:64]
        mine = Observation(student.adapter.encode(images, needs.taps_student))
        theirs = self.teacher.observe(images, needs.taps_teacher, False)
        for head in student.heads:
            head.fit_aligners(mine, theirs)

    # Its line -------------------------------------------------------------------------------------

    def make(self, run: Run, student, seconds: float) -> dict[str, Any]:
        """Measure a student and append its line."""
        from mmdfkd.evaluation import append_result
        from mmdfkd.evaluation.cost import count_parameters
        from mmdfkd.inheritance.families import compare_answers
        from mmdfkd.utils.run_files import project_commit

        student.eval()
        with torch.no_grad():
            found = compare_answers(self.teacher.adapter, student.adapter, self.held_out)
        accuracy = self.test(student.net)
        line = dict(
            benchmark=RESULTS.stem,
            set=run.set,
            student=round(count_parameters(student.net)[0] / self.parameters, 4),
            row=run.row,
            init=run.init,
            seed=run.seed,
            metrics={
                METRIC: accuracy,
                'agreement': round(100 * found['top1'], 2),
                'kl': round(found['kl'], 4),
            },
            teacher=self.accuracy,
            ceiling=None,
            steps=run.steps,
            seconds=round(seconds, 1),
            threads=torch.get_num_threads(),
            commit=project_commit(),
            command=self.command(run),
        )
        if identity(line) != run:
            raise ValueError(f'The line of {run} would be taken for {identity(line)}.')
        append_result(RESULTS, **line)
        return line

    def command(self, run: Run) -> str:
        """What makes a run's line again, without the machine's paths."""
        command = ['tools/benchmarks/inheritance.py', '--set', self.plan.set]
        command += ['--preset', self.plan.preset, '--rows', run.row, '--sizes', str(run.size)]
        command += ['--seeds', str(run.seed), '--steps', str(run.steps)]
        if self.plan.test_images:
            command += ['--test-images', str(self.plan.test_images)]
        if self.data_root:
            command += ['--data-root', self.data_root]
        return shown_command(command, {self.data_root: 'DATA_ROOT'} if self.data_root else {})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--set', choices=SETS, default='digits')
    parser.add_argument('--preset', choices=SEEDS, default='quick')
    parser.add_argument('--rows', nargs='+', choices=ROWS, help='all by default')
    parser.add_argument('--sizes', nargs='+', type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument('--seeds', nargs='+', type=int, help="the preset's by default")
    parser.add_argument(
        '--steps', type=int, help="training steps, the preset's by default; 0 trains nothing"
    )
    parser.add_argument('--test-images', type=int, help='test on so many, evenly spread')
    parser.add_argument('--data-root', help="folder of the set; the config's data_root by default")
    parser.add_argument('--dry-run', action='store_true', help='print the plan and stop')
    args = parser.parse_args(argv)
    if args.steps is not None and (args.steps < 0 or 0 < args.steps < 10):
        parser.error('--steps must be 0 or at least 10')
    if args.test_images is not None and args.test_images < 1:
        parser.error('--test-images must be at least 1')
    return args


def main(argv: list[str] | None = None) -> None:
    """Make what is missing, and say what each gave."""
    args = parse_args(argv)
    seeds = tuple(args.seeds or SEEDS[args.preset])
    sizes = tuple(args.sizes)
    plan = Plan(args.set, args.preset, args.rows, sizes, seeds, args.steps, args.test_images)
    lines = read_lines()
    print(describe(plan, lines), flush=True)
    missing = [run for run in plan.runs() if run not in lines]
    if args.dry_run or not missing:
        return
    use_all_cores()
    # How every parameter was initialised is not of interest here.
    MMLogger.get_instance('inheritance', log_level='WARNING')
    data_root = os.path.abspath(args.data_root) if args.data_root else None
    benchmark = Benchmark(plan, data_root)
    done: Run | None = None
    student, seconds = None, 0.0
    for run in missing:
        benchmark.prepare(run.seed)
        alike = done and (done.row, done.size, done.seed) == (run.row, run.size, run.seed)
        if not alike:
            student, seconds = benchmark.student(run)
        if run.steps:
            seconds += benchmark.train(run, student)
        line = benchmark.make(run, student, seconds)
        print(f'{run}: {line["metrics"]} of {line["teacher"]}, {line["seconds"]} s', flush=True)
        done = run


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
