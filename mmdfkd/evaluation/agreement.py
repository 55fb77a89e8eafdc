"""How well a student follows its teacher where there is no test set: on synthetic images."""

import contextlib
import io
from collections.abc import Iterator, Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mmdfkd.adapters import Adapter, Memory


@torch.no_grad()
def detections(adapter: Adapter, images: Tensor, batch: int = 16) -> list[InstanceData]:
    """A detector's answers to ``images`` ``[N, 3, H, W]``, uint8 or in [0, 1]."""
    parts = _encoded(adapter, images, batch)
    return [found for memory in parts for found in adapter.detect(memory)]


@torch.no_grad()
def class_probabilities(adapter: Adapter, images: Tensor, batch: int = 64) -> Tensor:
    """A classifier's answers ``[N, classes]`` to ``images`` as in :func:`detections`."""
    return torch.cat([adapter.class_votes(m).cpu() for m in _encoded(adapter, images, batch)])


def _encoded(adapter: Adapter, images: Tensor, batch: int) -> Iterator[Memory]:
    device = next(adapter.net.parameters()).device
    for part in images.split(batch):
        part = part.to(device)
        yield adapter.encode(part.float() / 255 if part.dtype == torch.uint8 else part)


def classification_agreement(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """How often both classifiers name one class, and how far their probabilities are apart.

    On images in which the teacher sees every class (:class:`mmdfkd.synthesis.PixelInversionSource`,
    with another seed than the training's) it can choose between students where there is no test
    set; ``docs/notes/classifiers.md`` has the figures.

    Args:
        student (Tensor): Probabilities ``[N, classes]``.
        teacher (Tensor): Likewise.

    Returns:
        dict[str, float]: ``top1``, the share of the images of one first class, and ``divergence``,
        the mean of KL(teacher || student) in nats.

    Raises:
        ValueError: If the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'classification_agreement: answers of {tuple(student.shape)} and '
            f'{tuple(teacher.shape)}: both must be of the same images and classes.'
        )
    floor = torch.finfo(torch.float32).tiny
    logs = [p.double().clamp_min(floor).log() for p in (student, teacher)]
    divergence = (teacher.double() * (logs[1] - logs[0])).sum(1).mean()
    same = student.argmax(1) == teacher.argmax(1)
    return dict(top1=float(same.float().mean()), divergence=float(divergence))


def detection_agreement(
    student: Sequence[InstanceData],
    teacher: Sequence[InstanceData],
    num_classes: int,
    least_score: float = 0.3,
) -> dict[str, float]:
    """COCO mAP of the student's detections against the teacher's, taken as the truth.

    On scenes with objects (:class:`mmdfkd.synthesis.LayoutInversionSource`, with another seed than
    the training's) it ranks students as a real test set does, so it can choose between them where
    there is none; ``docs/notes/layout_inversion.md`` has the figures.

    Args:
        student (Sequence[InstanceData]): Per image ``bboxes``, ``scores`` and ``labels``.
        teacher (Sequence[InstanceData]): Likewise.
        num_classes (int): Number of classes.
        least_score (float): The teacher's detections from this score on count as objects.

    Returns:
        dict[str, float]: ``bbox_mAP`` and ``bbox_mAP_50``, in [0, 1], and ``objects``, how many the
        teacher sees.

    Raises:
        ValueError: If the teacher sees no object at all: there is nothing to agree on.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, (truth, answer) in enumerate(zip(teacher, student, strict=True)):
        sure = truth.scores >= least_score
        for box, label in zip(_xywh(truth.bboxes[sure]), truth.labels[sure].tolist(), strict=True):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=label,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
        for box, label, score in zip(
            _xywh(answer.bboxes), answer.labels.tolist(), answer.scores.tolist(), strict=True
        ):
            results.append(dict(image_id=image, category_id=label, bbox=box, score=score))
    if not annotations:
        raise ValueError(
            f'The teacher sees no object with a score of {least_score} or more in '
            f'{len(teacher)} images: use images with objects in them.'
        )
    if not results:
        return dict(bbox_mAP=0.0, bbox_mAP_50=0.0, objects=float(len(annotations)))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(
            images=[dict(id=i) for i in range(len(teacher))],
            annotations=annotations,
            categories=[dict(id=i, name=str(i)) for i in range(num_classes)],
        )
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(
        bbox_mAP=float(evaluation.stats[0]),
        bbox_mAP_50=float(evaluation.stats[1]),
        objects=float(len(annotations)),
    )


def _xywh(boxes: Tensor) -> list[list[float]]:
    boxes = boxes.double()
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
