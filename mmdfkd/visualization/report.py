"""A run's report: one way for every run of every config."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mmdfkd.evaluation import (
    FinishedRun,
    RunEvaluation,
    evaluate_run,
    ground_truth,
    image_of,
    markdown_report,
    prediction,
    read_curves,
    seen_in,
    spread,
    text_table,
    write_text,
)
from mmdfkd.utils.checkpoint import read_checkpoint, unwrap_state_dict
from mmdfkd.utils.run_files import write_json

from .curves import draw_curves
from .grids import annotated_grid, comparison_grid

_DETECTION_IMAGES = 5
_CLASSIFICATION_IMAGES = 40


def _finite(value: Any) -> Any:
    """JSON has no NaN: None stands for it."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an RGB uint8 image, in one go; as what its name's suffix says (.png, .jpg)."""
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]))
    if not done:
        raise OSError(f'{path} could not be encoded as {path.suffix}.')
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_bytes(data.tobytes())
    os.replace(temporary, path)


def draw_synthetic(run: FinishedRun, found: RunEvaluation, path: Path) -> bool:
    """Draw the run's synthetic images with what the teacher sees; False where it left none."""
    if not run.samples.is_file():
        return False
    images = unwrap_state_dict(read_checkpoint(str(run.samples)))['images']
    pixels = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    save_image(
        path, annotated_grid(pixels, seen_in(found.adapter, images), found.teacher.class_names)
    )
    return True


def draw_comparison(found: RunEvaluation, path: Path) -> None:
    """Draw test images with ground truth, teacher's and student's answers."""
    teacher, student = found.teacher, found.student
    wanted = _CLASSIFICATION_IMAGES if found.adapter.family == 'classifier' else _DETECTION_IMAGES
    indices = spread(len(teacher.dataset), wanted)
    grid = comparison_grid(
        [image_of(teacher, i) for i in indices],
        [ground_truth(teacher, i) for i in indices],
        [prediction(teacher, i) for i in indices],
        [prediction(student, i) for i in indices],
        teacher.class_names,
    )
    save_image(path, grid)


def write_report(
    run: FinishedRun, options: Mapping[str, Any] | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Test a run's networks and write ``report/`` into its work directory.

    ``report.json`` (figures), ``README.md`` (the table with the pictures), ``synthetic.png``,
    ``detections.png`` (also for a classifier), ``curves.png``, and ``tests/`` with the logs.

    Args:
        run (FinishedRun): The run.
        options (Mapping, optional): Dotted config keys to change in the tests.
        say (Callable): Given a line before each part.

    Returns:
        dict: The contents of ``report.json``.

    Raises:
        FinishedRunError: If the run is not complete; nothing is written.
    """
    found = evaluate_run(run, options, say)
    folder = run.report_dir
    say('Drawing ...')
    pictures = {}
    # Those of an earlier report must not stand beside new figures.
    for name in ('synthetic.png', 'detections.png', 'curves.png'):
        (folder / name).unlink(missing_ok=True)
    with torch.no_grad():
        if draw_synthetic(run, found, folder / 'synthetic.png'):
            pictures['synthetic.png'] = 'Synthetic images, with what the teacher sees in them'
        draw_comparison(found, folder / 'detections.png')
        pictures['detections.png'] = 'Test images: ground truth, teacher, student'
    records = read_curves(run.work_dir)
    if records:
        draw_curves(records, folder / 'curves.png')
        pictures['curves.png'] = 'Training losses'
    report = _finite(found.report)
    write_json(folder / 'report.json', report)
    write_text(
        folder / 'README.md',
        markdown_report(found.report, f'Report of {run.work_dir.name}', pictures),
    )
    say('')
    say(text_table(found.report))
    return report
