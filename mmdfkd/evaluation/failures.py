"""What the student misses that the teacher finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .predictions import Annotation
from .table import align

MIN_IOU = 0.5
MIN_SCORE = 0.3
SIZES = {'small': 32**2, 'medium': 96**2, 'large': float('inf')}
"""COCO's sizes: areas below which a box is of that size, in square pixels of the image."""


@dataclass(frozen=True)
class Failures:
    """Found and missed objects of one image.

    Attributes:
        index: The image's place in its set.
        truth: What is in it.
        teacher: For each object the teacher's detection that finds it, ``[N]``; -1 where none does.
        student: The same of the student.
    """

    index: int
    truth: Annotation
    teacher: np.ndarray
    student: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """Indices of the objects that the teacher finds and the student does not."""
        return np.flatnonzero((self.teacher >= 0) & (self.student < 0))


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union ``[N, M]`` of boxes ``[N, 4]`` and ``[M, 4]``, xyxy; 0 if empty."""
    a, b = np.asarray(a, float).reshape(-1, 4), np.asarray(b, float).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def find_objects(
    truth: Annotation, seen: Annotation, min_iou: float = MIN_IOU, min_score: float = MIN_SCORE
) -> np.ndarray:
    """Which detection finds each object.

    As in COCO's evaluation: detections by descending score each take the object of their own class
    that they overlap most and that is not taken; a second box on the same object finds nothing.

    Args:
        truth (Annotation): The objects, ``N`` of them.
        seen (Annotation): The detections.
        min_iou (float): Least overlap. Defaults to 0.5.
        min_score (float): Detections below it do not count. Defaults to 0.3.

    Returns:
        np.ndarray: Index of a detection for each object, ``[N]``; -1 where none finds it.

    Raises:
        ValueError: If one of both has no boxes: a classifier's.
    """
    if truth.boxes is None or seen.boxes is None:
        raise ValueError('Objects are found by detectors; this set or network has no boxes.')
    found = np.full(len(truth.labels), -1)
    overlap = box_iou(seen.boxes, truth.boxes)
    for i in np.argsort(-seen.scores, kind='stable'):
        free = (found < 0) & (truth.labels == seen.labels[i]) & (overlap[i] >= min_iou)
        if seen.scores[i] >= min_score and free.any():
            found[np.where(free, overlap[i], -1).argmax()] = i
    return found


def failures_of(
    truth: Sequence[Annotation],
    teacher: Sequence[Annotation],
    student: Sequence[Annotation],
    min_iou: float = MIN_IOU,
    min_score: float = MIN_SCORE,
) -> list[Failures]:
    """Every image's found and missed objects; the images with most missed ones first.

    Args:
        truth (Sequence[Annotation]): One an image.
        teacher (Sequence[Annotation]): The teacher's detections of the same images.
        student (Sequence[Annotation]): The student's.
        min_iou (float): See :func:`find_objects`.
        min_score (float): Of both networks' detections.
    """
    images = [
        Failures(
            index,
            real,
            *(find_objects(real, seen, min_iou, min_score) for seen in networks),
        )
        for index, (real, *networks) in enumerate(zip(truth, teacher, student, strict=True))
    ]
    return sorted(images, key=lambda image: (-len(image.missed), image.index))


def sizes_of(boxes: np.ndarray) -> np.ndarray:
    """Index into :data:`SIZES` of each box ``[N, 4]``."""
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return np.searchsorted(list(SIZES.values()), areas, side='right')


_COLUMNS = ('objects', 'teacher', 'student', 'missed', 'gained')


def count_failures(
    images: Sequence[Failures], names: Sequence[str]
) -> dict[str, dict[str, dict[str, int]]]:
    """Objects per class and per size.

    Args:
        images (Sequence[Failures]): As :func:`failures_of` returns them.
        names (Sequence[str]): Class names.

    Returns:
        dict: ``class`` and ``size``, each by name: ``objects``, those that ``teacher`` and
        ``student`` find, those that the student has ``missed`` (the teacher finds them) and
        ``gained`` (only the student does). Sizes are all there, of the classes those with objects.
    """
    if not images:
        return {'class': {}, 'size': {}}
    labels = np.concatenate([image.truth.labels for image in images])
    sizes = np.concatenate([sizes_of(image.truth.boxes) for image in images])
    by_teacher, by_student = (
        np.concatenate([getattr(image, who) for image in images]) >= 0
        for who in ('teacher', 'student')
    )

    def counts(chosen: np.ndarray) -> dict[str, int]:
        values = (
            chosen,
            chosen & by_teacher,
            chosen & by_student,
            chosen & by_teacher & ~by_student,
            chosen & ~by_teacher & by_student,
        )
        return {name: int(value.sum()) for name, value in zip(_COLUMNS, values, strict=True)}

    return {
        'class': {
            str(names[label]) if label < len(names) else str(label): counts(labels == label)
            for label in np.unique(labels)
        },
        'size': {name: counts(sizes == i) for i, name in enumerate(SIZES)},
    }


def failures_table(counts: dict[str, dict[str, dict[str, int]]]) -> str:
    """The counts as plain text: classes, sizes, and all objects."""
    rows = [
        [name, *(str(values[column]) for column in _COLUMNS)]
        for group in ('class', 'size')
        for name, values in counts[group].items()
    ]
    every = counts['size'].values()
    rows.append(['all', *(str(sum(values[column] for values in every)) for column in _COLUMNS)])
    return align(['', *_COLUMNS], rows)
