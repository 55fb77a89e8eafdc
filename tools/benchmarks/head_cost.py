"""What heads cost: seconds and memory of a training step, relative to one with KL alone.

    python tools/benchmarks/head_cost.py
    python tools/benchmarks/head_cost.py --rows "KL + manifold" --rounds 15

The rows of tools/benchmarks/heads.py, and DearKD's early features of a CNN. A step is a whole one:
teacher, student, losses, gradients, optimiser, on images that are there already. In each round come
a step of the row and one of KL alone of the same student, in one process, now this first and now
that; the median of the ratios is taken, so a machine that others use at the same time meets both.
Seconds are those that the process computed on a CPU, of the clock on a GPU.

``time``: seconds of a step, in those of KL alone. ``memory``: what a step keeps for its backward
and of the heads' own parameters (with gradients and both averages of Adam), likewise; ``mib`` is
the same in MiB. It is counted tensor by tensor, each storage once, so it is the same on every
machine. One line a row in docs/results/head_cost.jsonl, written at once; a row whose line is there
is not repeated.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import median

import torch
from heads import (  # the benchmark beside this file
    FULL_ROWS,
    INHERITED_ROWS,
    OWN_CONFIGS,
    OWN_INHERITED_ROWS,
    OWN_KL,
    Run,
    kl_of,
    row_config,
)
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from source_cost import clock
from torch import Tensor, nn

import mmdfkd  # noqa: F401  (first of the stack: it makes torchvision importable)
from mmdfkd.distillers import DataFreeDistiller
from mmdfkd.registry import MODELS
from mmdfkd.utils.launch import fail_clearly

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'head_cost.jsonl'
SIZE = 32
INHERITED = INHERITED_ROWS | OWN_INHERITED_ROWS
# Of DearKD's pair, whose teacher is another than the benchmark's.
EARLY, EARLY_KL = 'KL + early features', 'KL, CNN teacher'
DEARKD = ROOT / 'configs' / 'dearkd' / 'dearkd_resnet18-c16_to_vit128_cifar10.py'
ROWS = FULL_ROWS | INHERITED_ROWS | OWN_KL | dict.fromkeys((EARLY, EARLY_KL))


def rival_of(row: str) -> str:
    """KL alone of the same pair of networks."""
    return EARLY_KL if row in (EARLY, EARLY_KL) else kl_of(row)


def config_of(row: str, init: str) -> Config:
    """The run of a row as heads.py has it."""
    if row in (EARLY, EARLY_KL):
        cfg = Config.fromfile(DEARKD)
        early = [dict(h) for h in cfg.model.heads if h.type == 'mmdfkd.EarlyFeatureHead']
        for head in early:
            # The first stage goes on.
            del head['schedule']
        cfg.model.heads = [dict(type='mmdfkd.LogitHead'), *(early if row == EARLY else ())]
        return cfg
    with tempfile.TemporaryDirectory() as folder:
        return Config.fromfile(row_config(Run('data-free', row, init, 0, 1), Path(folder)))


def distiller_of(row: str, device: str) -> DataFreeDistiller:
    """The run of a row, started; images come from outside."""
    init = 'inherit' if row in INHERITED else 'random'
    cfg = config_of(row, init)
    cfg.model.source = dict(type='mmdfkd.RenderedSource')
    if row not in OWN_CONFIGS:
        cfg.model.student.init = init
    # The start is not measured, and its quality is nothing here.
    cfg.model.inheritance = dict(images=64)
    distiller = MODELS.build(cfg.model).to(device)
    distiller.seed, distiller.image_size, distiller.iteration = 0, (SIZE, SIZE), 0
    distiller.init_weights()
    distiller.wrapper = build_optim_wrapper(distiller, cfg.optim_wrapper)
    return distiller


def step_of(distiller: DataFreeDistiller, images: Tensor) -> Callable[[], None]:
    """A whole training step on these images, ``[B, 3, H, W]`` of bytes."""
    data = dict(g=list(range(len(images))), image=list(images))
    return lambda: distiller.train_step(data, distiller.wrapper)


def kept_bytes(step: Callable[[], None], held: Sequence[nn.Module], own: nn.Module) -> int:
    """What a step keeps for its backward, and what trains the heads' own parameters.

    Args:
        step (Callable): A training step.
        held (Sequence[nn.Module]): Networks whose parameters and buffers are there anyway.
        own (nn.Module): The heads: their parameters count four times, with gradients and Adam's
            averages.
    """
    known = {t.untyped_storage().data_ptr() for net in held for t in _tensors(net)}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            # Alive until the backward, all of them: one address is one storage.
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(found.values()) + 4 * sum(p.nbytes for p in own.parameters())


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def measure(
    row: DataFreeDistiller, base: DataFreeDistiller, images: Tensor, rounds: int
) -> tuple[dict[str, float], float]:
    """Measures of a row against KL alone, and the seconds of a step of it."""
    device = images.device
    runs = (base, row)
    steps = [step_of(run, images) for run in runs]
    kept = [
        kept_bytes(step, (run.student, run.teacher.adapter.net), run.student.heads)
        for step, run in zip(steps, runs, strict=True)
    ]
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        # Each goes first as often as the other: what runs next finds warm caches.
        for which in ((0, 1), (1, 0))[number % 2]:
            began = clock(device)
            steps[which]()
            times[which].append(clock(device) - began)
    ratio = median(b / a for a, b in zip(*times, strict=True))
    mib = kept[1] / 2**20
    found = dict(time=ratio, memory=kept[1] / kept[0], mib=mib)
    return {name: round(value, 3) for name, value in found.items()}, median(times[1])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rows', nargs='+', choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument('--rounds', type=int, default=6, help='steps of each that are timed')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--device', default='cpu', help="'cpu' or 'cuda'")
    parser.add_argument('--out', type=Path, default=RESULTS, help='file of the results')
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.batch < 3:
        parser.error('--rounds must be at least 1 and --batch at least 3')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing."""
    args = parse_args(argv)
    from mmdfkd.evaluation import append_result
    from mmdfkd.evaluation.benchmark import finished_runs
    from mmdfkd.evaluation.cost import count_parameters
    from mmdfkd.utils.run_files import project_commit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (args.batch, 3, SIZE, SIZE), dtype=torch.uint8)
    images = images.to(args.device)
    rival = cache(lambda row: distiller_of(row, args.device))
    where = f'cifar10, {args.device}, batch {args.batch}'
    for name in args.rows:
        if (where, name) in finished_runs(args.out, lambda line: (line['set'], line['row'])):
            continue
        began = time.perf_counter()
        base = rival(rival_of(name))
        row = distiller_of(name, args.device)
        found, seconds = measure(row, base, images, args.rounds)
        parameters = [
            count_parameters(net)[0] for net in (row.student.net, row.teacher.adapter.net)
        ]
        line = dict(
            benchmark=RESULTS.stem,
            set=where,
            student=round(parameters[0] / parameters[1], 4),
            row=name,
            init='inherit' if name in INHERITED else 'random',
            seed=0,
            metrics=found,
            teacher=None,
            ceiling=None,
            steps=args.rounds,
            seconds=round(seconds, 4),
            threads=1,
            commit=project_commit(),
            command=(
                'python tools/benchmarks/head_cost.py '
                f'--batch {args.batch} --rounds {args.rounds} --device {args.device}'
            ),
        )
        append_result(args.out, **line)
        print(f'{name}: {found} in {time.perf_counter() - began:.0f} s', flush=True)


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
