from collections.abc import Sequence

from torch import Tensor

from mmdfkd.adapters import Observation, Targets
from mmdfkd.registry import MODELS

from .base import DistillHead
from .object_watch import ObjectWatch


def _has_area(boxes: Tensor) -> Tensor:
    """Which boxes ``(x0, y0, x1, y1)`` are a pixel wide and high at least: ``[N]`` of bools."""
    return (boxes[:, 2:] - boxes[:, :2] >= 1).all(-1)


@MODELS.register_module()
class PseudoLabelHead(ObjectWatch, DistillHead):
    """The student's own training loss, the teacher's detections being the labels.

    Needs nothing in common with the teacher but the classes: of any family of detectors, at any
    width. Assignment, sampling and weights are those of the student's own ``train_cfg`` and heads,
    as mmdet trains it; features and encoder are not computed twice. Boxes under a pixel wide or
    high are no labels, as in mmdet's sets: some families' losses are not finite there.

    Where the teacher detects nothing above the threshold in ``patience`` steps on end, that is
    said, and what is configured happens.

    Args:
        threshold (float | Sequence[float]): Least score of a detection that counts, in (0, 1); one
            for each class, or one for all. Defaults to 0.4.
        on_empty (str): ``'warn'`` goes on, ``'lower'`` halves the threshold, down to
            0.05, ``'stop'`` ends the run. Defaults to ``'warn'``.
        patience (int): Steps on end without a detection after which that happens; an epoch of the
            real set, say. Defaults to 200.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an argument that makes no sense.
    """

    any_family = True

    def __init__(
        self,
        threshold: float | Sequence[float] = 0.4,
        on_empty: str = 'warn',
        patience: int = 200,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.start_watch(threshold, on_empty, patience)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_pseudo``, the sum of the student's own terms.

        Raises:
            NoDetectionsError: Where ``on_empty='stop'`` says so.
        """
        objects = [
            found[self.sure(found.scores, found.labels) & _has_area(found.bboxes)]
            for found in teacher.detections
        ]
        self.watch(sum(map(len, objects)))
        return {'loss_pseudo': sum(student.own_loss(objects).values())}
