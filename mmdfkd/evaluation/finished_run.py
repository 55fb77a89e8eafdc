"""What a finished distillation leaves in its work directory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdfkd.utils import run_files


class FinishedRunError(FileNotFoundError):
    """A work directory lacks what the report is made from."""


@dataclass(frozen=True)
class FinishedRun:
    """Paths of one run.

    Attributes:
        work_dir: The run's work directory.
        config: Name of the run's config, for messages.
    """

    work_dir: Path
    config: str

    @property
    def student(self) -> Path:
        """Weights of the trained student, tensors only."""
        return self.work_dir / run_files.STUDENT

    @property
    def student_start(self) -> Path:
        """Weights of the student before its first step."""
        return self.work_dir / run_files.STUDENT_START

    @property
    def student_config(self) -> Path:
        """The student's whole config."""
        return self.work_dir / run_files.STUDENT_CONFIG

    @property
    def teacher_config(self) -> Path:
        """The teacher's whole config, with the run's own test set."""
        return self.work_dir / run_files.TEACHER_CONFIG

    @property
    def facts_file(self) -> Path:
        """What the run says about itself."""
        return self.work_dir / run_files.RUN

    @property
    def samples(self) -> Path:
        """A few synthetic images, ``{'images': uint8 [N, 3, H, W] RGB}``; a run may leave none."""
        return self.work_dir / run_files.SAMPLES

    @property
    def report_dir(self) -> Path:
        """Where the report is written."""
        return self.work_dir / run_files.REPORT

    def read(self) -> dict[str, Any]:
        """Check that the run is complete and return the contents of ``run.json``.

        Raises:
            FinishedRunError: If a file is missing or the run has not finished; names the command
                to run first.
        """
        needed = (self.facts_file, self.student, self.student_config, self.teacher_config)
        missing = [path.name for path in needed if not path.is_file()]
        command = f'python tools/train.py {self.config} --work-dir {self.work_dir}'
        if missing:
            raise FinishedRunError(
                f'{self.work_dir} holds no finished run to report on: {", ".join(missing)} '
                f'{"is" if len(missing) == 1 else "are"} missing. Run first: {command}'
            )
        try:
            facts = json.loads(self.facts_file.read_text(encoding='utf-8'))
        except json.JSONDecodeError as error:
            raise FinishedRunError(
                f'{self.facts_file} is no valid JSON ({error}). Run again: {command} --overwrite'
            ) from error
        if not facts.get('finished', True):
            raise FinishedRunError(
                f'The run in {self.work_dir} has not finished. Finish it first: {command} --resume'
            )
        return facts

    def teacher_checkpoint(self, facts: dict[str, Any]) -> str:
        """Where the teacher's weights are.

        A URL is taken as it is, a path as the run gave it or from the work directory.

        Raises:
            FinishedRunError: If there is no such file, or the run did not say.
        """
        given = facts.get('teacher_checkpoint')
        if not given and facts.get('teacher_labels'):
            raise FinishedRunError(
                f'The run learned from stored labels, {facts["teacher_labels"]}, without its '
                f"teacher: to test that, name its weights as 'teacher_checkpoint' in "
                f'{self.facts_file}.'
            )
        if not given:
            raise FinishedRunError(f"{self.facts_file} names no 'teacher_checkpoint'.")
        if '://' in given:
            return given
        for path in (Path(given), self.work_dir / given):
            if path.is_file():
                return str(path)
        raise FinishedRunError(
            f"The teacher's checkpoint {given}, named in {self.facts_file}, is not there: put it "
            'back, or correct the path in that file, to test the teacher.'
        )


def read_curves(work_dir: Path) -> list[dict[str, float]]:
    """Training log of a run: one record an interval, with ``iter`` and its losses, in order.

    A resumed run continues in another time-stamped folder: its records replace those of the same
    iterations on. A run that starts over replaces everything.
    """
    records: list[dict[str, float]] = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        own = []
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # A line cut short by a killed run.
            # Validation lines carry no loss.
            if 'iter' in record and any('loss' in key for key in record):
                own.append(record)
        if own:
            records = [r for r in records if r['iter'] < own[0]['iter']] + own
    return records
