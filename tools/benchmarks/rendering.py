"""How many images a second does one core render?

    python tools/benchmarks/rendering.py
    python tools/benchmarks/rendering.py --rows fractals shaders --sizes 224 --seconds 10

One line a renderer and size, of ``images_per_s``: images per second of CPU time of one process with
one thread, measured over images ``0, 1, 2, ...`` of a seed after a few to warm up; ``steps`` is how
many there were. Nothing is trained: ``student`` is 1. A line that is there is not repeated.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.evaluation.results import append_result, read_results
from mmdfkd.registry import TASK_UTILS
from mmdfkd.utils.launch import fail_clearly
from mmdfkd.utils.run_files import project_commit

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'rendering.jsonl'
ROWS: dict[str, dict] = {
    'noise': dict(type='mmdfkd.NoiseRenderer'),
    'procedural': dict(type='mmdfkd.ProceduralRenderer'),
    'dead leaves': dict(type='mmdfkd.DeadLeavesRenderer'),
    'fractals': dict(type='mmdfkd.FractalRenderer'),
    'sinusoids': dict(type='mmdfkd.SinusoidRenderer'),
    'shaders': dict(type='mmdfkd.ShaderRenderer'),
    'glyphs': dict(type='mmdfkd.GlyphRenderer'),
    'dark look': dict(
        type='mmdfkd.LookRenderer', look='dark', renderer=dict(type='mmdfkd.ProceduralRenderer')
    ),
    'combined': dict(type='mmdfkd.CombinedRenderer'),
}
SIZES = (32, 224, 512)
WARM_UP = 3


def measure(cfg: dict, size: int, seconds: float, seed: int = 0) -> tuple[int, float]:
    """Render for a while.

    Args:
        cfg (dict): Config of the renderer.
        size (int): Side of the images in pixels.
        seconds (float): Of CPU time, at least; the last image is finished.
        seed (int): Of the images.

    Returns:
        tuple[int, float]: Number of images and the seconds of CPU time that they took.
    """
    render = TASK_UTILS.build(dict(cfg))
    for g in range(WARM_UP):
        render(seed, g, (size, size))
    count, start, taken = 0, time.process_time(), 0.0
    while taken < seconds:
        render(seed, WARM_UP + count, (size, size))
        count += 1
        taken = time.process_time() - start
    return count, taken


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW')
    parser.add_argument('--sizes', nargs='+', type=int, default=list(SIZES), help='sides in pixels')
    parser.add_argument('--seconds', type=float, default=3.0, help='CPU seconds a line')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if args.seconds <= 0 or min(args.sizes) < 1 or args.seed < 0:
        parser.error('--seconds and --sizes must be above 0, --seed at least 0')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is not there yet."""
    args = parse_args(argv)
    # One core: what a worker of a loader has.
    cv2.setNumThreads(1)
    done = set()
    if args.results.exists():
        done = {(r['set'], r['row'], r['seed']) for r in read_results(args.results)}
    given = sys.argv[1:] if argv is None else argv
    command = shlex.join(['python', 'tools/benchmarks/rendering.py', *given])
    for size in args.sizes:
        for row in args.rows:
            name = f'{size} px'
            if (name, row, args.seed) in done:
                print(f'{name:>7}  {row:<12} there already', flush=True)
                continue
            count, seconds = measure(ROWS[row], size, args.seconds, args.seed)
            append_result(
                args.results,
                benchmark=args.results.stem,
                set=name,
                student=1.0,
                row=row,
                init='none',
                seed=args.seed,
                metrics=dict(images_per_s=round(count / seconds, 2)),
                teacher=None,
                ceiling=None,
                steps=count,
                seconds=round(seconds, 2),
                threads=1,
                commit=project_commit(),
                command=command,
            )
            print(f'{name:>7}  {row:<12} {count / seconds:8.1f} images/s', flush=True)


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
