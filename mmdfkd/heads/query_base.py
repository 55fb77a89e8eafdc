from torch import Tensor, nn

from mmdfkd.adapters import DetrAdapter, QueryAnswers
from mmdfkd.losses import foreground, query_box_loss, query_class_loss

from .base import DistillHead


class QueryHead(DistillHead):
    """Compares the answers of DETR-like networks at paired queries.

    Classes: see :func:`~mmdfkd.losses.query_class_loss`, a mean over layers, images and queries
    weighted by ``f + (1 - f) w``, ``w`` the teacher's highest probability of a class: most queries
    see nothing. Boxes: L1 and GIoU, means weighted by ``w``.

    Args:
        temperature (float): Softens the classes. Defaults to 1.
        floor (float): Weight ``f`` of a query without any foreground, in [0, 1]. Defaults to 0.1.
        cls_weight (float): Weight of the classes. Defaults to 1.
        l1_weight (float): Weight of the boxes' L1 distance, a mean of the four coordinates.
            Defaults to 5.
        giou_weight (float): Weight of ``1 - GIoU``. Defaults to 2.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On a floor outside [0, 1].
    """

    def __init__(
        self,
        temperature: float = 1.0,
        floor: float = 0.1,
        cls_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= floor <= 1:
            raise ValueError(f'{type(self).__name__}: floor must be in [0, 1], not {floor}.')
        self.temperature = temperature
        self.floor = floor
        self.cls_weight = cls_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Look whether both are DETRs.

        Raises:
            ValueError: If one is not, or one has sigmoids and the other a softmax.
        """
        require_detrs(type(self).__name__, student, teacher)
        kinds = [bool(net.bbox_head.loss_cls.use_sigmoid) for net in (student, teacher)]
        if kinds[0] != kinds[1]:
            words = ['a sigmoid for each class' if kind else 'a softmax' for kind in kinds]
            raise ValueError(
                f"{type(self).__name__}: the student's head has {words[0]}, the teacher's "
                f"{words[1]}: give the student's bbox_head the teacher's loss_cls."
            )

    def compare(
        self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], sigmoid: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of paired answers.

        Args:
            student (tuple[Tensor, Tensor]): Logits ``[..., C]`` and boxes ``[..., 4]``.
            teacher (tuple[Tensor, Tensor]): Likewise, the same shapes.
            sigmoid (bool): Whether each class is a sigmoid of its own.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Classes, L1 and GIoU, each times its weight.
        """
        weight = foreground(teacher[0], sigmoid)
        floored = self.floor + (1 - self.floor) * weight
        cls = query_class_loss(student[0], teacher[0], floored, sigmoid, self.temperature)
        l1, giou = query_box_loss(student[1], teacher[1], weight)
        return self.cls_weight * cls, self.l1_weight * l1, self.giou_weight * giou


def require_detrs(who: str, *nets: nn.Module) -> None:
    """Raise ValueError where one of the networks is no DETR."""
    for net in nets:
        if not DetrAdapter.supports(net):
            raise ValueError(
                f'{who} compares queries of DETR-like networks (DETR, Conditional DETR, DAB-DETR, '
                f'Deformable DETR, DINO), not of a {type(net).__name__}: take another head.'
            )


def last_layers(answers: QueryAnswers, count: int) -> tuple[Tensor, Tensor]:
    """The last layer's logits and boxes, ``count`` times: ``[count, B, Q, ...]``."""
    return tuple(
        x[-1:].detach().expand(count, *x.shape[1:]) for x in (answers.logits, answers.boxes)
    )
