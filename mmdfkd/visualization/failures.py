"""The failure gallery: what the student misses that the teacher finds."""

from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np

from mmdfkd.evaluation import Annotation, Failures

from .colours import INK, WRONG
from .draw import caption, class_name, draw_boxes, fit, tile
from .grids import panel


def _outline(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A second, red frame around boxes, in pixels of the image."""
    image = image.copy()
    for box in boxes:
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(image, (x1 - 3, y1 - 3), (x2 + 3, y2 + 3), WRONG, 2, cv2.LINE_AA)
    return image


def _missed_text(failures: Failures, names: Sequence[str]) -> str:
    labels = failures.truth.labels[failures.missed]
    counts = Counter(class_name(names, int(label)) for label in labels)
    return f'missed {len(labels)}: ' + ', '.join(
        f'{name} ({n})' for name, n in counts.most_common()
    )


def failure_gallery(
    images: Sequence[np.ndarray],
    failures: Sequence[Failures],
    teacher: Sequence[Annotation],
    student: Sequence[Annotation],
    names: Sequence[str],
    side: int = 384,
) -> np.ndarray:
    """A row an image: ground truth, the teacher's detections that are right, the student's.

    What the student misses although the teacher finds it has a red frame.

    Args:
        images (Sequence[np.ndarray]): RGB uint8 ``[H, W, 3]``.
        failures (Sequence[Failures]): Of the same images.
        teacher (Sequence[Annotation]): The teacher's detections.
        student (Sequence[Annotation]): The student's; those below a score of 0.3 are not drawn.
        names (Sequence[str]): Class names.
        side (int): About how long the longer side of each image becomes, pixels.
    """
    panels = []
    for image, failed, right, seen in zip(images, failures, teacher, student, strict=True):
        large, factor = fit(image, side)
        missed = failed.truth.boxes[failed.missed] * factor
        hits = failed.teacher[failed.teacher >= 0]
        truth = draw_boxes(large, failed.truth.boxes * factor, failed.truth.labels, names)
        found = draw_boxes(
            large, right.boxes[hits] * factor, right.labels[hits], names, right.scores[hits]
        )
        panels += [
            caption(_outline(truth, missed), [(_missed_text(failed, names), WRONG)]),
            caption(found, [(f'{len(hits)} of {len(failed.truth.labels)} found', INK)]),
            caption(
                _outline(panel(image, seen, names, side), missed),
                [(f'{(failed.student >= 0).sum()} of {len(failed.truth.labels)} found', INK)],
            ),
        ]
    return tile(panels, 3, heads=('ground truth', 'teacher, right', 'student'))
