"""The files that a distillation run leaves in its work directory."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STUDENT = 'student.pth'
STUDENT_START = 'student_start.pth'
STUDENT_CONFIG = 'student_config.py'
TEACHER_CONFIG = 'teacher_config.py'
RUN = 'run.json'
SAMPLES = 'synthetic_samples.pth'
REPORT = 'report'
SYNTHETIC = 'synthetic'
PICTURES = 'vis_data'
LAST_CHECKPOINT = 'last_checkpoint'
# As mmengine's CheckpointHook names them.
_NUMBERED = r'(?:best_.+_)?(?:iter|epoch)_\d+\.pth'
_OWN = re.compile('|'.join([_NUMBERED, *map(re.escape, (STUDENT, STUDENT_START, SAMPLES))]))


def checkpoints_in(work_dir: str | Path) -> list[Path]:
    """Every checkpoint directly in a work directory."""
    return sorted(Path(work_dir).glob('*.pth'))


def own_checkpoints(work_dir: str | Path) -> list[Path]:
    """Those of them that a run has written, by their names; other files are the user's.

    The last one of another ``filename_tmpl`` is told by ``last_checkpoint``.
    """
    pointer = Path(work_dir) / LAST_CHECKPOINT
    last = Path(pointer.read_text().strip()).name if pointer.is_file() else ''
    return [p for p in checkpoints_in(work_dir) if _OWN.fullmatch(p.name) or p.name == last]


def refuse_foreign_checkpoints(work_dir: str | Path) -> None:
    """Never mix two runs.

    Args:
        work_dir (str | Path): The run's directory; need not exist.

    Raises:
        RuntimeError: If there are checkpoints that a run has written.
    """
    found = own_checkpoints(work_dir)
    if found:
        raise RuntimeError(
            f'{work_dir} holds checkpoints of another run '
            f'({", ".join(p.name for p in found[:4])}). Continue it with --resume, replace it with '
            '--overwrite (in other tools: --cfg-options overwrite=True), or choose another '
            '--work-dir.'
        )


def clear_run(
    work_dir: str | Path, needed: Iterable[str | Path] = (), current: str | None = None
) -> None:
    """Delete what an earlier run left: its checkpoints, exports, curves, pictures and report.

    Synthetic images are not among it: the new run has made its own by now, and removes the others.

    Args:
        work_dir (str | Path): The run's directory; need not exist.
        needed (Iterable[str | Path]): Files that the new run reads.
        current (str, optional): Name of the folder of the new run's own log.

    Raises:
        RuntimeError: If one of those is among them; nothing was deleted.
    """
    found = own_checkpoints(work_dir)
    wanted = {Path(name).resolve() for name in needed}
    kept = [path for path in found if path.resolve() in wanted]
    if kept:
        raise RuntimeError(
            f'--overwrite would delete {kept[0]}, which this run reads: choose another --work-dir.'
        )
    rest = (STUDENT_CONFIG, TEACHER_CONFIG, RUN, LAST_CHECKPOINT)
    for path in [*found, *(Path(work_dir) / name for name in rest)]:
        path.unlink(missing_ok=True)
    for curves in Path(work_dir).glob('*/vis_data/scalars.json'):
        if curves.parts[-3] != current:
            curves.unlink()
    for picture in (Path(work_dir) / PICTURES).glob('synthetic_*.png'):
        picture.unlink()
    shutil.rmtree(Path(work_dir) / REPORT, ignore_errors=True)


def named_files(value: Any) -> set[str]:
    """Every string in a config that names an existing file."""
    if isinstance(value, Mapping):
        value = value.values()
    elif isinstance(value, str):
        return {value} if len(value) < 4096 and os.path.isfile(value) else set()
    elif not isinstance(value, list | tuple):
        return set()
    return set().union(*map(named_files, value))


def write_json(path: str | Path, content: dict) -> None:
    """Write JSON in one go: a reader never sees half a file."""
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(temporary, path)


def project_commit() -> str:
    """Commit of the checkout that mmdfkd runs from, with ``+`` for uncommitted changes.

    ``'unknown'`` elsewhere.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / '.git').exists():
        return 'unknown'

    def git(*args: str) -> str:
        command = ['git', '-C', str(root), *args]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    commit = git('rev-parse', '--short', 'HEAD')
    changed = git('status', '--porcelain', '--untracked-files=no')
    return f'{commit}{"+" if changed else ""}' if commit else 'unknown'
