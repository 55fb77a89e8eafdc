"""A benchmark's runs side by side: the tool itself in a process each, limited to one part.

Small networks keep one core busy and hardly a second one, so two runs of a thread each are done
sooner than one after the other with two.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch

from mmdfkd.utils.launch import core_count, ended_by_signals

Run = TypeVar('Run', bound=Hashable)


#: Processes at once unless a user says otherwise: each holds a gigabyte or two.
_MOST = 4


def default_jobs() -> int:
    """One a core, at most four; one where there is a GPU, which a run fills."""
    return 1 if torch.cuda.is_available() else min(_MOST, core_count())


def add_jobs_option(parser: argparse.ArgumentParser) -> None:
    """The option ``--jobs`` of a benchmark: runs at once."""
    parser.add_argument(
        '--jobs',
        type=_at_least_one,
        default=default_jobs(),
        help=f'runs at once, on a share of cores each; one a core by default, at most {_MOST}, '
        'and one where there is a GPU',
    )


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, not {text}')
    return int(text)


@dataclass
class SideBySide(Generic[Run]):
    """Works a plan off with several processes.

    Attributes:
        tool: The benchmark's file; a process runs it with the options of a part and of all, one run
            at a time (``--jobs 1``).
        common: Options of every process.
        left: The runs of the plan without a line, in order.
        part: Options that limit the tool to a run, or to a few that are made together.
        needs: Runs whose lines have to be there before, where they are in the plan.
        done: Told of every finished run.
        jobs: Processes at once.
        logs: Folder for what they print.
        every: Seconds between two looks.
    """

    tool: Path
    common: Sequence[str]
    left: Callable[[], Sequence[Run]]
    part: Callable[[Run], tuple[str, ...]]
    needs: Callable[[Run], Iterable[Run]]
    done: Callable[[Run], None]
    jobs: int
    logs: Path
    every: float = 1.0
    _running: dict[tuple[str, ...], tuple[Run, subprocess.Popen, Path]] = field(
        default_factory=dict, init=False
    )

    def run(self) -> None:
        """Make what is left.

        Raises:
            RuntimeError: If a process fails or leaves no line; those beside it end their runs
                first, and no other is started.
        """
        with ended_by_signals():
            failed = self._work()
        if failed:
            raise RuntimeError('; '.join(failed))
        if left := list(self.left()):
            raise RuntimeError(f'{left[0]} needs a run that needs it: nothing can be started.')

    def _work(self) -> list[str]:
        """Start and await processes until nothing is left, or one has failed; what went wrong."""
        failed: list[str] = []
        before = list(self.left())
        try:
            while True:
                left = list(self.left())
                for run in before:
                    if run not in left:
                        self.done(run)
                before = left
                if not failed:
                    self._start(left)
                if not self._running:
                    return failed
                time.sleep(self.every)
                failed += self._ended()
        finally:
            for _, process, _ in self._running.values():
                os.killpg(process.pid, signal.SIGTERM)

    def _start(self, left: Sequence[Run]) -> None:
        for run in left:
            part = self.part(run)
            if len(self._running) == self.jobs:
                return
            if part in self._running or any(needed in left for needed in self.needs(run)):
                continue
            log = self.logs / f'job_{"_".join(part).replace("--", "").replace(" ", "_")}.log'
            threads = max(1, core_count() // self.jobs)
            with log.open('w') as stream:
                process = subprocess.Popen(
                    # One at a time: it would start processes of its own, and so without end.
                    [sys.executable, str(self.tool), *self.common, '--jobs', '1', *part],
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=dict(OMP_NUM_THREADS=str(threads)) | os.environ,
                    # So that it can be ended with what it has started.
                    start_new_session=True,
                )
            self._running[part] = run, process, log

    def _ended(self) -> list[str]:
        """Forget processes that have ended; what went wrong with them."""
        wrong = []
        for part, (run, process, log) in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[part]
            if process.returncode:
                wrong.append(f'{run}: its process failed; see {log}')
            elif run in self.left():
                wrong.append(f'{run}: its process left no line; see {log}')
        return wrong
