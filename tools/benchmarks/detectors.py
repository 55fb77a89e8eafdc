"""What images and start are worth: one detector from every source and start, side by side.

    python tools/benchmarks/detectors.py --preset quick

Each run is the main job with another source or start; nothing else differs. A finished run is one
line of docs/results/detectors.jsonl; a run whose line is there is not repeated, so an interrupted
benchmark goes on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from mmengine.config import Config

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.launch import fail_clearly, use_all_cores

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'detectors.jsonl'
# The rows' configs: the main job and what differs from it.
CONFIGS = {
    'noise': 'configs/digits/dfkd_noise.py',
    'procedural': 'configs/digits/dfkd_procedural.py',
    'procedural + refinement': 'configs/digits/dfkd_refined.py',
    'real (ceiling)': 'configs/digits/dfkd_real.py',
}
REAL = 'real (ceiling)'
START = '0 steps'
# Steps of the first schedule in configs/dfkd_vitdet.py.
WARMUP = 50
PRESETS = dict(quick=dict(steps=300, seeds=(0,)), full=dict(steps=1000, seeds=(0, 1, 2)))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--preset', choices=PRESETS, default='quick')
    parser.add_argument('--rows', nargs='+', choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument(
        '--inits', nargs='+', choices=['inherit', 'random'], default=['inherit', 'random']
    )
    parser.add_argument('--work-dir', default='work_dirs/benchmark_detectors')
    return parser.parse_args()


def done(row: str, init: str, seed: int, steps: int) -> dict | None:
    """The committed line of a run, if it is there."""
    if RESULTS.is_file():
        for line in RESULTS.read_text().splitlines():
            fields = json.loads(line)
            if (fields['row'], fields['init'], fields['seed'], fields['steps']) == (
                row,
                init,
                seed,
                steps,
            ):
                return fields
    return None


def train(row: str, init: str, seed: int, steps: int, work_dir: Path) -> list[str]:
    """Run the ordinary train tool; returns its command."""
    options = [
        f'train_cfg.max_iters={steps}',
        f'train_cfg.val_interval={steps}',
        f'param_scheduler.1.end={steps}',
        f'param_scheduler.1.T_max={steps - WARMUP}',
        f'randomness.seed={seed}',
        f'model.student.init={init}',
    ]
    command = [
        'tools/train.py',
        CONFIGS[row],
        '--overwrite',
        '--work-dir',
        str(work_dir),
        '--cfg-options',
        *options,
    ]
    with (work_dir.with_suffix('.log')).open('w') as log:
        status = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    if status:
        raise RuntimeError(f'{row}, {init}: the run failed; see {work_dir.with_suffix(".log")}.')
    return command


def measure(work_dir: Path, checkpoint: str, config: str = 'student_config.py') -> tuple[dict, int]:
    """Test a network of a finished run: its metrics and its number of parameters."""
    from mmdfkd.evaluation import test_network

    tested = test_network(Config.fromfile(work_dir / config), checkpoint, work_dir / 'test.log')
    metrics = {k.split('/')[-1]: round(float(v), 4) for k, v in tested.metrics.items()}
    keep = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_s')
    return {k: metrics[k] for k in keep}, sum(p.numel() for p in tested.net.parameters())


def main() -> None:
    """Run what is missing, one run after the other, and say what each gave."""
    args = parse_args()
    use_all_cores()
    preset = PRESETS[args.preset]
    root = Path(args.work_dir).resolve()
    root.mkdir(parents=True, exist_ok=True)
    # The ceiling first: the other rows are measured against it.
    rows = sorted(args.rows, key=lambda row: row != REAL)
    teacher: tuple[float, int] | None = None
    from mmdfkd.evaluation import append_result

    for seed in preset['seeds']:
        for init in args.inits:
            ceiling = done(REAL, init, seed, preset['steps'])
            ceiling = ceiling['metrics']['bbox_mAP'] if ceiling else None
            for row in rows:
                if done(row, init, seed, preset['steps']):
                    continue
                work_dir = root / f'{row.split(" (")[0].replace(" + ", "_")}_{init}_s{seed}'
                command = train(row, init, seed, preset['steps'], work_dir)
                run = json.loads((work_dir / 'run.json').read_text())
                if teacher is None:
                    metrics, parameters = measure(
                        work_dir, run['teacher_checkpoint'], 'teacher_config.py'
                    )
                    teacher = (metrics['bbox_mAP'], parameters)
                metrics, parameters = measure(work_dir, str(work_dir / 'student.pth'))
                if row == REAL:
                    ceiling = metrics['bbox_mAP']
                shown = ' '.join(['python', *command]).replace(str(root), args.work_dir)
                common = dict(
                    benchmark=RESULTS.stem,
                    set='digits',
                    student=round(parameters / teacher[1], 4),
                    init=init,
                    seed=seed,
                    teacher=teacher[0],
                    ceiling=ceiling,
                    threads=run['threads'],
                    commit=run['commit'],
                    command=shown,
                )
                if init == 'inherit' and not done(START, init, seed, 0):
                    start, _ = measure(work_dir, str(work_dir / 'student_start.pth'))
                    seconds = round((run['inheritance'] or {}).get('seconds', 0), 1)
                    append_result(
                        RESULTS, row=START, metrics=start, steps=0, seconds=seconds, **common
                    )
                append_result(
                    RESULTS,
                    row=row,
                    metrics=metrics,
                    steps=run['steps'],
                    seconds=run['seconds'],
                    **common,
                )
                print(
                    f'{row}, {init}, seed {seed}: {metrics} of {teacher[0]}, ceiling {ceiling}',
                    flush=True,
                )


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
