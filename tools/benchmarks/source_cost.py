"""What synthetic images cost: images a second, passes of the teacher and memory, source by source.

    python tools/benchmarks/source_cost.py
    python tools/benchmarks/source_cost.py --set deit-128px vitdet

A source makes one batch, of start images that are there already; before it another one to warm up
where it takes a single step. A row is one line of docs/results/source_cost.jsonl, written at once;
a row whose line is there is not repeated.

- ``images_per_second``: of one core on a CPU (by the seconds that the process computed, so that
  other processes count little), by the clock on a GPU;
- ``teacher_passes`` an image: each pass counts by the share of the full image that the teacher saw,
  of its tokens or pixels, and one with gradient to the pixels counts twice;
- ``in_forwards``: seconds an image, in those of one gradient-free pass of the teacher on a batch,
  measured right before and after;
- ``peak_mib``: most memory while a batch was made beyond what was there before it: of a process
  of its own on a CPU, of PyTorch's allocator on a GPU.

Three rows are no sources: a gradient-free pass of the teacher, a step to the pixels through a
frozen teacher (goal: at most 2.6 such passes), and the same step through one whose parameters want
gradients too, as in most released inversions. They are measured in turn.
"""

import argparse
import contextlib
import copy
import gc
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import torch
from mmengine.config import Config
from torch import Tensor

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.adapters import Adapter
from mmdfkd.registry import MODELS, TASK_UTILS
from mmdfkd.synthesis import SyntheticSource, frozen
from mmdfkd.synthesis.pass_count import counted
from mmdfkd.utils.launch import fail_clearly

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'source_cost.jsonl'

FORWARD, FROZEN, UNFROZEN = 'gradient-free pass', 'frozen step', 'unfrozen step'
PROCEDURAL = dict(type='mmdfkd.ProceduralRenderer')
NOISE = dict(type='mmdfkd.NoiseRenderer')
# What classifiers are distilled on by default: the pool of configs/_base_/dfkd_classifier.py, and
# the whole of it, since what the teacher is asked once is shared by all of its images.
DEFAULT_POOL = 'default pool'
# Start images that nobody scores, drawn as they are.
START = dict(
    type='mmdfkd.PooledSource',
    renderer=PROCEDURAL,
    pool_size=32,
    balance=False,
    augment=None,
    num_workers=0,
)
# Each of its images kept once, with the teacher's answers.
REPLAY = dict(
    type='mmdfkd.ReplaySource', prefill=0, every=1, answers=True, views=4, bank=dict(capacity=64)
)
TARGET = dict(type='mmdfkd.TargetPrior', weight=1.0)
VARIATION = dict(type='mmdfkd.TotalVariationPrior', weight=0.02)
#: Prior sets of pixel inversion; None takes the source's own.
PRIORS: dict[str, list[dict] | None] = {
    'class': [TARGET],
    'soft class': [dict(type='mmdfkd.ClassPrior', mode='soft')],
    'sub-boxes': [dict(type='mmdfkd.SubBoxPrior')],
    'class, total variation': [TARGET, VARIATION],
    'class, patch boundary': [TARGET, dict(type='mmdfkd.PatchBoundaryPrior')],
    'class, patch similarity': [TARGET, dict(type='mmdfkd.PatchSimilarityPrior')],
    'class, patch similarity (KDE)': [
        TARGET,
        dict(type='mmdfkd.PatchSimilarityPrior', form='kde'),
    ],
    'class, attention': [TARGET, dict(type='mmdfkd.AttentionPrior')],
    'class, inter-head': [TARGET, dict(type='mmdfkd.InterHeadPrior')],
    'class, contrastive': [TARGET, dict(type='mmdfkd.ContrastivePrior')],
    'class, divergence': [TARGET, dict(type='mmdfkd.DivergencePrior')],
    'class, Jensen-Shannon': [TARGET, dict(type='mmdfkd.JensenShannonPrior')],
    'class, boundary': [TARGET, dict(type='mmdfkd.BoundaryPreservingPrior')],
    'class, entropy': [TARGET, dict(type='mmdfkd.InformationEntropyPrior')],
    'class, attention focus': [TARGET, dict(type='mmdfkd.AttentionFocusPrior')],
    'class, attention consistency': [TARGET, dict(type='mmdfkd.AttentionConsistencyPrior')],
    'class, logit distance': [TARGET, dict(type='mmdfkd.LogitDistancePrior')],
    'default priors': None,
}
#: Further ones, which need a teacher with batch norms.
BATCH_NORM = {'class, batch norm': [TARGET, dict(type='mmdfkd.BatchNormPrior')]}
#: Rounds of the methods with a generator, by preset; their number of gradient steps.
GENERATORS: dict[str, tuple[str, int]] = {
    'DAFL': ('dafl', 1),
    'ZSKT': ('zskt', 1),
    'DFAD': ('dfad', 1),
    'DFQ': ('dfq', 1),
    'Fast': ('fast', 10),
    'NAYER': ('nayer', 40),
    'transformer generator': ('dfkt', 1),
}
#: What changes in an inversion with the default priors.
MODES: dict[str, dict] = {
    'half-resolution start': dict(half=1 / 3),
    'SMI': dict(sparse=dict(type='mmdfkd.PatchDropping')),
    'SMI, published schedule': dict(
        sparse=dict(type='mmdfkd.PatchDropping', at=(0.0125, 0.025, 0.05, 0.075))
    ),
    'PRI, 2 images': dict(sparse=dict(type='mmdfkd.PatchRebirth', images=2)),
    'PRI, 4 images': dict(sparse=dict(type='mmdfkd.PatchRebirth', images=4)),
    'SMI after half resolution': dict(half=1 / 3, sparse=dict(type='mmdfkd.PatchDropping')),
}
#: Sources that no row shows, and why.
WITHOUT_ROW = {
    'MixtureSource': 'costs what its parts cost, each whole',
    'DatasetSource': 'reads an ordinary dataset: its pipeline is what it costs',
}


@dataclass(frozen=True)
class Set:
    """A teacher and the size of its images.

    Attributes:
        network: Config and checkpoint, without their endings; random weights where there is no
            checkpoint: a pass costs the same.
        size: Height and width in pixels.
        batch: Images made at once.
        steps: Gradient steps of an inversion.
        rows: Which rows; None for all that suit a classifier.
    """

    network: str
    size: int
    batch: int
    steps: int = 20
    rows: tuple[str, ...] | None = None


SETS = {
    'deit': Set('configs/digits/deit_digits', 32, 8),
    # The same network with sixteen times the patches, where attention and blocks weigh more.
    'deit-128px': Set(
        'configs/digits/deit_digits',
        128,
        2,
        rows=('refinement', 'DAFL', 'inversion: class', 'inversion: default priors', *MODES),
    ),
    # A convolutional teacher, for the statistics of its batch norms.
    'resnet': Set(
        'configs/dearkd/resnet18-c16_cifar10',
        32,
        8,
        rows=('inversion: class', 'inversion: class, batch norm', 'inversion: default priors'),
    ),
    'vitdet': Set(
        'configs/digits/vitdet_digits',
        128,
        2,
        rows=('layout inversion', 'inversion: default priors'),
    ),
}


@dataclass(frozen=True)
class Row:
    """One source, as it is measured.

    Attributes:
        name: In the results.
        source: Its config; of mmdfkd.RenderedSource, the renderer's: loader workers run that alone.
        steps: Gradient steps of an image.
        start: What images start from.
    """

    name: str
    source: Mapping[str, Any] = field(hash=False)
    steps: int
    start: str = 'procedural'


def default_pool() -> dict[str, Any]:
    """The classifiers' default source, rendered by this process."""
    pool = Config.fromfile(ROOT / 'configs' / '_base_' / 'dfkd_classifier.py').pooled.to_dict()
    return dict(pool, num_workers=0)


def rows_of(which: Set) -> list[Row]:
    """The rows of a set, in the order of the results."""
    batch, steps = which.batch, which.steps
    dense = dict(
        type='mmdfkd.PixelInversionSource',
        source=START,
        images=batch,
        batch=batch,
        steps=steps,
        half=0.0,
        checks=1,
    )
    # Before the first step only what makes the round measured possible.
    generator = dict(type='mmdfkd.PresetGeneratorSource', batch=batch, every=1, first=1)
    rows = [
        Row('noise', NOISE, 0, 'none'),
        Row('procedural', PROCEDURAL, 0, 'none'),
        Row('pool, scored', dict(START, pool_size=batch, balance=True), 0, 'none'),
        Row(DEFAULT_POOL, default_pool(), 0, 'none'),
        Row('folder, filtered', dict(type='mmdfkd.FolderSource'), 0, 'files'),
        Row('replay, 4 views answered', dict(REPLAY, source=START, batch=batch), 0),
        Row(
            'refinement',
            dict(type='mmdfkd.RefinedSource', source=START, batch=batch, steps=10),
            10,
        ),
    ]
    for name, (preset, rounds) in GENERATORS.items():
        rows.append(Row(name, dict(generator, preset=preset), rounds, 'noise'))
    prior_sets = PRIORS if which.rows is None else PRIORS | BATCH_NORM
    for name, priors in prior_sets.items():
        changes = {} if priors is None else dict(priors=priors)
        rows.append(Row(f'inversion: {name}', dict(dense, **changes), steps))
    for name, mode in MODES.items():
        # As many trajectories at once as there are images in the others.
        count = batch * mode.get('sparse', {}).get('images', 1)
        rows.append(Row(f'inversion: {name}', dict(dense, images=count, **mode), steps))
    layout = dict(
        type='mmdfkd.LayoutInversionSource', source=START, images=batch, batch=batch, starts=32
    )
    if which.rows is None:
        return rows
    rows.append(Row('layout inversion', layout, 20))
    wanted = {name if name not in MODES else f'inversion: {name}' for name in which.rows}
    return [row for row in rows if row.name in wanted]


# Measuring ---------------------------------------------------------------------------------------


def clock(device: torch.device) -> float:
    """Seconds: computed by this process on a CPU, by the clock on a GPU that is done."""
    if device.type != 'cuda':
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def rss() -> float:
    """Memory that this process holds now, in MiB; 0 where the system does not say."""
    status = Path('/proc/self/status')
    if not status.is_file():
        return 0.0
    lines = dict(line.split(':', 1) for line in status.read_text().splitlines() if ':' in line)
    return int(lines['VmRSS'].split()[0]) / 1024


def forget_peak() -> None:
    """Set the system's mark of this process's peak memory to what it holds now (Linux alone)."""
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')


class Memory:
    """Peak memory from here on, in MiB.

    On a CPU of a system other than Linux also what was freed before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # What is garbage by now would be freed at any time later, and peaks before are not meant.
        gc.collect()
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 2**20
        else:
            forget_peak()
            self.before = rss()

    def peak(self) -> float:
        """Most beyond what there was."""
        if self.device.type == 'cuda':
            most = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            scale = 2**20 if sys.platform == 'darwin' else 1024
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
        return max(most - self.before, 0.0)


def write_images(folder: Path, which: Set) -> None:
    """As many files as a batch has images."""
    render = TASK_UTILS.build(PROCEDURAL)
    for number in range(which.batch):
        pixels = torch.as_tensor(render(2, number, (which.size, which.size)))
        cv2.imwrite(str(folder / f'{number}.png'), pixels.permute(1, 2, 0).numpy()[..., ::-1])


def maker(
    row: Row, teacher: Adapter, student: Adapter, which: Set, folder: Path
) -> Callable[[], int]:
    """What makes one batch of a row and says how many images that were; start images are ready."""
    device = next(teacher.net.parameters()).device
    size = (which.size, which.size)
    if row.source['type'].endswith('Renderer'):
        render, number = TASK_UTILS.build(row.source), iter(range(1 << 30))
        return lambda: sum(render(0, next(number), size) is not None for _ in range(which.batch))
    cfg = dict(row.source)
    if row.start == 'files':
        write_images(folder, which)
        cfg['root'] = str(folder)
    source: SyntheticSource = MODELS.build(cfg)
    where = dict(seed=0, image_size=size, device=device)
    if row.steps == 0 and row.start in ('none', 'files'):
        # What it costs is to get it ready.

        def score() -> int:
            source.prepare(teacher, **where)
            return getattr(source, 'pool_size', which.batch)

        return score
    source.prepare(teacher, **where)
    if hasattr(source, 'round'):
        source.fill(teacher)

    def make() -> int:
        if hasattr(source, 'round'):
            source.round(teacher, student, 0)
            return which.batch
        if hasattr(source, 'make'):
            source.make(source.images, teacher, student, 0)
            return source.images
        source.refresh(teacher, student, 0)
        return which.batch

    return make


def measure(
    row: Row, teacher: Adapter, student: Adapter, which: Set, images: Tensor
) -> tuple[dict[str, float], float]:
    """Measures of one row, and the seconds of the measured batch.

    Args:
        row (Row): The row.
        teacher (Adapter): The teacher.
        student (Adapter): For the terms that ask it.
        which (Set): Size and batch.
        images (Tensor): ``[B, 3, H, W]`` in [0, 1], for a gradient-free pass.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _measure(maker(row, teacher, student, which, Path(folder)), row, teacher, images)


def _measure(
    make: Callable[[], int], row: Row, teacher: Adapter, images: Tensor
) -> tuple[dict[str, float], float]:
    device = images.device
    forward, passed = steps_of(teacher, images)[FORWARD], []

    def a_few_forwards() -> None:
        for number in range(6):
            began = clock(device)
            forward()
            if number:
                passed.append((clock(device) - began) / len(images))

    memory = Memory(device)
    if row.steps <= 1:
        make()
    a_few_forwards()
    with counted(teacher.net, tuple(images.shape[-2:])) as passes:
        began = clock(device)
        count = make()
        seconds = clock(device) - began
    a_few_forwards()
    found = dict(
        images_per_second=count / seconds,
        teacher_passes=passes.work / count,
        in_forwards=seconds / count / median(passed),
        peak_mib=memory.peak(),
    )
    return {name: round(value, 3) for name, value in found.items()}, seconds


def steps_of(teacher: Adapter, images: Tensor) -> dict[str, Callable[[], None]]:
    """A gradient-free pass and a step down the class, frozen or not, on these images."""
    from mmdfkd.synthesis.layouts import wanted_targets

    labels = torch.arange(len(images), device=images.device) % teacher.num_classes
    with frozen(teacher.net):
        targets, probe = wanted_targets(images, labels, teacher)
    net = teacher.net

    def forward() -> None:
        with frozen(net), torch.no_grad():
            teacher.answer(teacher.encode(images), probe)

    def step() -> None:
        pixels = images.clone().requires_grad_()
        loss = teacher.target_loss(teacher.encode(pixels), targets).sum()
        wanted = [pixels, *(p for p in net.parameters() if p.requires_grad)]
        torch.autograd.grad(loss, wanted, allow_unused=True)

    def frozen_step() -> None:
        with frozen(net):
            step()

    def unfrozen_step() -> None:
        with frozen(net):
            net.requires_grad_(True)
            step()

    return {FORWARD: forward, FROZEN: frozen_step, UNFROZEN: unfrozen_step}


def measure_steps(
    teacher: Adapter, images: Tensor, rounds: int = 15
) -> dict[str, tuple[dict[str, float], float]]:
    """Measures of a gradient-free pass and of both kinds of step, and seconds of a batch.

    Args:
        teacher (Adapter): The teacher.
        images (Tensor): ``[B, 3, H, W]`` in [0, 1].
        rounds (int): Times each is run, in turn; medians are taken.
    """
    calls, device = steps_of(teacher, images), images.device
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            began = clock(device)
            call()
            if number >= 2:
                times[name].append(clock(device) - began)
    seconds = {name: median(values) for name, values in times.items()}
    found = {}
    for name, spent in seconds.items():
        # Of the same round, so that a busy machine meets both.
        ratio = median(a / b for a, b in zip(times[name], times[FORWARD], strict=True))
        measures = dict(images_per_second=len(images) / spent, in_forwards=ratio)
        found[name] = {key: round(value, 3) for key, value in measures.items()}, spent
    return found


# The tool ----------------------------------------------------------------------------------------


def in_a_child(work: Callable[[], Any], threads: int) -> Any:
    """What ``work`` gives in a process of its own, which starts as this one is now.

    Raises:
        RuntimeError: If it fails there; says how.
    """
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(threads)
        try:
            there.send((True, work()))
        except Exception as error:
            # Whatever it is, the parent has to know.
            there.send((False, f'{type(error).__name__}: {error}'))

    process = context.Process(target=run)
    process.start()
    there.close()
    try:
        fine, result = here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f'A row ended its process with status {process.exitcode}.') from None
    process.join()
    if not fine:
        raise RuntimeError(result)
    return result


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--set', nargs='+', choices=tuple(SETS), default=['deit'])
    parser.add_argument('--rows', nargs='+', help='only these, by their name in the results')
    parser.add_argument('--device', default='cpu', help="'cpu' or 'cuda'")
    parser.add_argument('--out', type=Path, default=RESULTS, help='file of the results')
    args = parser.parse_args(argv)
    known = {FORWARD, FROZEN, UNFROZEN} | {r.name for s in SETS.values() for r in rows_of(s)}
    unknown = sorted(set(args.rows or ()) - known)
    if unknown:
        parser.error(f'--rows: there is no {unknown}; there is {sorted(known)}')
    return args


def load_teacher(which: Set, device: str) -> Adapter:
    """The set's network; of random weights where none are committed."""
    from mmdfkd.distillers.teacher import Teacher

    weights = ROOT / f'{which.network}.pth'
    torch.manual_seed(0)
    teacher = Teacher(str(ROOT / f'{which.network}.py'), str(weights))
    if weights.is_file():
        teacher.load()
    teacher.net.to(device)
    return teacher.adapter


def measured(
    name: str, which: Set, device: str, done: set[str], threads: int
) -> Iterator[tuple[str, str, int, dict[str, float], float]]:
    """Each row that has no line: name, start, steps, measures and seconds."""
    teacher = load_teacher(which, device)
    # Terms that ask the student ask a network as large as the teacher.
    student = copy.copy(teacher)
    student.net = copy.deepcopy(teacher.net)
    render = TASK_UTILS.build(PROCEDURAL)
    size = (which.size, which.size)
    images = torch.stack([torch.as_tensor(render(1, g, size)) for g in range(which.batch)])
    images = (images.float() / 255).to(device)

    def alone(work: Callable[[], Any]) -> Any:
        # A GPU's context does not outlive a fork, and its allocator tells the peak itself.
        return work() if device != 'cpu' else in_a_child(work, threads)

    steps = alone(lambda: measure_steps(teacher, images))
    for row, (found, seconds) in steps.items():
        if row not in done:
            yield row, 'procedural', 1 if row != FORWARD else 0, found, seconds
    for row in rows_of(which):
        if row.name not in done:
            found, seconds = alone(lambda row=row: measure(row, teacher, student, which, images))
            yield row.name, row.start, row.steps, found, seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the rows that have no line yet."""
    args = parse_args(argv)
    from mmengine.registry import init_default_scope

    from mmdfkd.evaluation import append_result, read_results
    from mmdfkd.utils.run_files import project_commit

    threads = torch.get_num_threads()
    # A child cannot use a pool of threads that was begun before it.
    torch.set_num_threads(1)
    lines = read_results(args.out) if args.out.is_file() and args.out.read_text().strip() else []
    for name in args.set:
        which = SETS[name]
        init_default_scope('mmdet' if name == 'vitdet' else 'mmpretrain')
        # What another device takes is another line.
        where = name if args.device == 'cpu' else f'{name}, {args.device}'
        done = {line['row'] for line in lines if line['set'] == where}
        if args.rows:
            done |= {FORWARD, FROZEN, UNFROZEN, *(r.name for r in rows_of(which))} - set(args.rows)
        for row, start, steps, found, seconds in measured(name, which, args.device, done, threads):
            append_result(
                args.out,
                benchmark=args.out.stem,
                set=where,
                student=1.0,
                row=row,
                init=start,
                seed=0,
                metrics=found,
                teacher=None,
                ceiling=None,
                steps=steps,
                seconds=round(seconds, 4),
                threads=threads,
                commit=project_commit(),
                command=f'python tools/benchmarks/source_cost.py --set {name}'
                + ('' if args.device == 'cpu' else f' --device {args.device}'),
            )
            print(f'{where}, {row}: {found}', flush=True)


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
