"""What benchmarks of whole runs share: their plan, the train tool's runs, their tests.

A run is whatever hashable value identifies a line of the results; finished runs are a mapping from
these to their lines.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mmengine.config import Config

from mmdfkd.utils.launch import ended_by_signals

from .cost import count_parameters
from .results import read_results
from .testing import test_network

Run = TypeVar('Run', bound=Hashable)


def finished_runs(
    results: Path, identity: Callable[[Mapping[str, Any]], Run]
) -> dict[Run, dict[str, Any]]:
    """The lines of a benchmark's file by their run; none where there is no file yet.

    Raises:
        ResultError: If a line is no valid result.
    """
    if not results.is_file() or not results.read_text().strip():
        return {}
    return {identity(line): line for line in read_results(results)}


def seconds_a_step(lines: Mapping[Run, Mapping], *alike: Callable[[Run], bool]) -> float | None:
    """Mean seconds of a training step by the finished runs of the first kind that has any.

    Args:
        lines (Mapping): Finished runs, which have ``steps``.
        *alike (Callable): Whether a run is of a kind, likest kind first.
    """
    for fits in alike:
        rates = [line['seconds'] / r.steps for r, line in lines.items() if r.steps and fits(r)]
        if rates:
            return sum(rates) / len(rates)
    return None


def plan_text(
    runs: Iterable[Run],
    lines: Mapping[Run, Mapping],
    seconds: Callable[[Run], float | None],
    metric: str,
    skipped: Mapping[str, str],
) -> str:
    """A plan as text: what is done, what is to do and about how long it takes.

    Args:
        runs (Iterable): Every run of the plan, in order.
        lines (Mapping): The finished ones.
        seconds (Callable): How long a run will take; None where nothing is known of it.
        metric (str): What is shown of a finished run.
        skipped (Mapping): Rows that cannot be run, and why.
    """
    text, total, unknown = [], 0.0, 0
    for run in runs:
        if run in lines:
            text.append(f'done     {run}: {lines[run]["metrics"][metric]:.3f} {metric}')
            continue
        expected = seconds(run)
        total += expected or 0
        unknown += expected is None
        about = f' (about {expected:.0f} s)' if expected else ''
        text.append(f'to run   {run}{about}')
    text += [f'skipped  {row}: {reason}' for row, reason in skipped.items()]
    text.append(
        f'About {total / 60:.0f} minutes by the finished lines'
        + (f', without {unknown} runs that nothing is known of.' if unknown else '.')
    )
    return '\n'.join(text)


def moved(cfg: Mapping, data_root: str) -> dict[str, str]:
    """Dotted settings that make a config read its set from another folder.

    Args:
        cfg (Mapping): The config; its ``data_root`` begins every path of the set.
        data_root (str): The other folder.

    Raises:
        KeyError: If the config has no ``data_root``.
    """
    old = cfg.get('data_root')
    if not old:
        raise KeyError(f"--data-root: {getattr(cfg, 'filename', 'the config')} has no 'data_root'.")
    new = os.path.join(data_root, '')

    def walk(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                yield from walk(inner, f'{key}.{name}')
        elif isinstance(value, str) and value.startswith(old):
            yield key, new + value[len(old) :]

    parts = [f'{s}_{p}' for s in ('train', 'val', 'test') for p in ('dataloader', 'evaluator')]
    return dict(found for part in parts if part in cfg for found in walk(cfg[part], part))


def moved_options(config: Path, data_root: str | None) -> list[str]:
    """As :func:`moved`, as options of the train tool; none where the set is not moved.

    Validation is left out: a benchmark's runs have none.
    """
    if not data_root:
        return []
    found = moved(Config.fromfile(config), data_root)
    return [f'{name}={value}' for name, value in found.items() if not name.startswith('val_')]


def run_options(steps: int, warmup: int, seed: int, init: str | Path) -> list[str]:
    """What every benchmark sets in a config: length, seed and start, and nothing is validated.

    Args:
        steps (int): Training steps; 0 for a start alone, which takes one step to be made.
        warmup (int): Steps of the config's first schedule, which stay; the second takes the rest.
        seed (int): Of the run.
        init (str | Path): The student's start, or the weights it starts from.
    """
    options = [
        f'train_cfg.max_iters={steps or 1}',
        f'randomness.seed={seed}',
        f'model.student.init={init}',
        'val_cfg=None',
        'val_dataloader=None',
        'val_evaluator=None',
    ]
    if steps:
        options += [f'param_scheduler.1.end={steps}', f'param_scheduler.1.T_max={steps - warmup}']
    return options


def train_command(config: str, work_dir: Path, options: Sequence[str]) -> list[str]:
    """The ordinary train tool's command line, without the interpreter."""
    return [
        *('tools/train.py', config, '--overwrite', '--work-dir', str(work_dir)),
        *('--cfg-options', *options),
    ]


def run_command(command: Sequence[str], root: Path, log: Path, run: Any) -> None:
    """Run a tool of the checkout in a process of its own.

    Args:
        command (Sequence[str]): The tool and its arguments.
        root (Path): The checkout, where it runs and which it imports.
        log (Path): File for what it prints.
        run (Any): What it is, for the message.

    Raises:
        RuntimeError: If it fails; names the log.
    """
    path = os.pathsep.join(p for p in (str(root), os.environ.get('PYTHONPATH')) if p)
    # A killed benchmark takes its run along: started again, there would be two in one folder.
    with log.open('w') as stream, ended_by_signals():
        status = subprocess.run(
            [sys.executable, *command],
            cwd=root,
            env=os.environ | dict(PYTHONPATH=path),
            stdout=stream,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        raise RuntimeError(f'{run}: the run failed; see {log}.')


@contextmanager
def one_at_a_time(work_dir: Path) -> Iterator[None]:
    """Wait until no other process makes a run that several need; then keep others waiting.

    Args:
        work_dir (Path): The run's; the lock is a file beside it.
    """
    import fcntl

    work_dir.parent.mkdir(parents=True, exist_ok=True)
    with work_dir.with_name(work_dir.name + '.lock').open('w') as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def shown_command(command: Sequence[str], folders: Mapping[str, str]) -> str:
    """A command as text without the machine's paths.

    Args:
        command (Sequence[str]): The tool and its arguments.
        folders (Mapping[str, str]): Paths and what is shown for them.
    """
    text = shlex.join(['python', *command])
    for path, shown in folders.items():
        text = text.replace(path, shown)
    return text


def measured_once(
    kept: Path, checkpoint: str, config: Path, measure: Callable[[], tuple[Any, int]]
) -> tuple[Any, int]:
    """What ``measure`` gives of a network that every run of a benchmark compares with.

    Each of several processes would test it again. It is measured anew where its weights or its
    config, which names the test set, are others.

    Args:
        kept (Path): The file that is read and written.
        checkpoint (str): The network's weights: a file.
        config (Path): Its config with the test set.
        measure (Callable): Gives its measure, which JSON can hold, and its number of parameters.
    """
    digest = hashlib.sha256()
    for path in (Path(checkpoint), config):
        digest.update(path.read_bytes())
    key = digest.hexdigest()
    with one_at_a_time(kept):
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        if known.get('network') != key:
            value, parameters = measure()
            known = dict(network=key, value=value, parameters=parameters)
            kept.write_text(json.dumps(known))
    return known['value'], known['parameters']


def measure_run(
    work_dir: Path, checkpoint: str, config: str = 'student_config.py'
) -> tuple[dict[str, float], int]:
    """Test a network of a finished run.

    Args:
        work_dir (Path): The run's.
        checkpoint (str): The weights.
        config (str): File name of the network's config there.

    Returns:
        tuple[dict[str, float], int]: Its metrics by the last part of their names, and its number of
            parameters.
    """
    tested = test_network(Config.fromfile(work_dir / config), checkpoint, work_dir / 'test.log')
    found = {name.split('/')[-1]: float(value) for name, value in tested.metrics.items()}
    return found, count_parameters(tested.net)[0]
