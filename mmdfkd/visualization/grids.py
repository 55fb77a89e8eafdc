"""The report's grids of images."""

import math
from collections.abc import Sequence

import numpy as np

from mmdfkd.evaluation import Annotation

from .colours import INK, RIGHT, WRONG
from .draw import caption, class_name, draw_boxes, fit, tile

MIN_SCORE = 0.3
_MOST_BOXES = 40


def panel(image: np.ndarray, seen: Annotation, names: Sequence[str], side: int) -> np.ndarray:
    """One image, enlarged, with what somebody sees in it: boxes, or a class as its caption.

    Detections below a score of 0.3 are left out, as are all but the 40 best.
    """
    image, factor = fit(image, side)
    if seen.boxes is None:
        return caption(image, [(_class_text(seen, names), INK)])
    keep = np.arange(len(seen.labels))
    if seen.scores is not None:
        keep = np.argsort(-seen.scores, kind='stable')
        # The surest last: it is drawn on top.
        keep = keep[seen.scores[keep] >= MIN_SCORE][:_MOST_BOXES][::-1]
    scores = None if seen.scores is None else seen.scores[keep]
    return draw_boxes(image, seen.boxes[keep] * factor, seen.labels[keep], names, scores)


def _class_text(seen: Annotation, names: Sequence[str]) -> str:
    text = ', '.join(class_name(names, int(label)) for label in seen.labels)
    return text if seen.scores is None else f'{text} {100 * float(seen.scores[0]):.0f} %'


def annotated_grid(
    images: Sequence[np.ndarray],
    seen: Sequence[Annotation],
    names: Sequence[str],
    width: int = 1280,
) -> np.ndarray:
    """A near-square grid of images with what one network sees in each.

    Args:
        images (Sequence[np.ndarray]): RGB uint8 ``[H, W, 3]``.
        seen (Sequence[Annotation]): One an image.
        names (Sequence[str]): Class names.
        width (int): About how wide the grid becomes, pixels.
    """
    columns = max(1, math.ceil(math.sqrt(len(images))))
    side = min(384, width // columns)
    return tile([panel(i, s, names, side) for i, s in zip(images, seen, strict=True)], columns)


def comparison_grid(
    images: Sequence[np.ndarray],
    truth: Sequence[Annotation],
    teacher: Sequence[Annotation],
    student: Sequence[Annotation],
    names: Sequence[str],
    side: int | None = None,
) -> np.ndarray:
    """Ground truth, teacher and student side by side.

    Detection: a row an image, a column each. Classification: a grid of images with three lines
        below each, right
    answers green and wrong ones red.
    """
    if side is None:
        side = 576 if max(max(image.shape) for image in images) > 768 else 384
    everything = list(zip(images, truth, teacher, student, strict=True))
    if truth[0].boxes is not None:
        panels = [panel(image, seen, names, side) for image, *three in everything for seen in three]
        return tile(panels, 3, heads=('ground truth', 'teacher', 'student'))
    panels = []
    for image, real, *answers in everything:
        lines = [(f'truth    {_class_text(real, names)}', INK)]
        for who, answer in zip(('teacher', 'student'), answers, strict=True):
            colour = RIGHT if answer.labels[0] in real.labels else WRONG
            lines.append((f'{who} {_class_text(answer, names)}', colour))
        panels.append(caption(fit(image, 160)[0], lines))
    return tile(panels, min(8, max(1, math.ceil(math.sqrt(1.5 * len(panels))))))
