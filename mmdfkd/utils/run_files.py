"""The files that a distillation run leaves in its work directory."""

import json
import os
import shutil
import subprocess
from pathlib import Path

STUDENT = 'student.pth'
STUDENT_START = 'student_start.pth'
STUDENT_CONFIG = 'student_config.py'
TEACHER_CONFIG = 'teacher_config.py'
RUN = 'run.json'
SAMPLES = 'synthetic_samples.pth'
REPORT = 'report'


def checkpoints_in(work_dir: str | Path) -> list[Path]:
    """Every checkpoint directly in a work directory."""
    return sorted(Path(work_dir).glob('*.pth'))


def refuse_foreign_checkpoints(work_dir: str | Path, resume: bool, overwrite: bool) -> None:
    """Never mix two runs: stop, or clear the way when asked to.

    Args:
        work_dir (str | Path): The run's directory; need not exist.
        resume (bool): The run goes on from its checkpoints.
        overwrite (bool): Delete what an earlier run left.

    Raises:
        RuntimeError: If there are checkpoints and neither is set; nothing was changed.
    """
    found = checkpoints_in(work_dir)
    if resume or not found:
        return
    if not overwrite:
        raise RuntimeError(
            f'{work_dir} holds checkpoints of another run ({", ".join(p.name for p in found[:4])}). Continue it with --resume, '
            'replace it with --overwrite (in other tools: --cfg-options overwrite=True), or choose another --work-dir.'
        )
    for path in [*found, *(Path(work_dir) / name for name in (STUDENT_CONFIG, TEACHER_CONFIG, RUN, 'last_checkpoint'))]:
        path.unlink(missing_ok=True)
    shutil.rmtree(Path(work_dir) / REPORT, ignore_errors=True)


def write_json(path: str | Path, content: dict) -> None:
    """Write JSON in one go: a reader never sees half a file."""
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(temporary, path)


def project_commit() -> str:
    """Commit of the checkout that mmdfkd runs from, with ``+`` for uncommitted changes; ``'unknown'`` elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / '.git').exists():
        return 'unknown'

    def git(*args: str) -> str:
        return subprocess.run(['git', '-C', str(root), *args], capture_output=True, text=True).stdout.strip()

    commit = git('rev-parse', '--short', 'HEAD')
    changed = git('status', '--porcelain', '--untracked-files=no')
    return f'{commit}{"+" if changed else ""}' if commit else 'unknown'
