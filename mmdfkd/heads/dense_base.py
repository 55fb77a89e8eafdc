from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor, nn

from mmdfkd.adapters import DenseAnswers, DenseResponse, Observation, OneStageAdapter
from mmdfkd.losses import (
    binary_kl,
    dense_box_loss,
    localization_distillation,
    quality_focal,
    query_class_loss,
)

from .anchors import require_like_anchors
from .base import DistillHead


class DenseHead(DistillHead):
    """Compares answers of dense one-stage detectors, place by place.

    Most places see nothing. Classes: a mean over places weighted by ``f + (1 - f) w``, ``w`` the
    teacher's highest score at the place; boxes and centerness: means weighted by ``w``.

    Args:
        classes (str): ``'kl'``, of the Bernoulli distribution of each class, or ``'qfl'``, the
            quality focal loss with the teacher's probabilities. Defaults to ``'kl'``.
        temperature (float): Softens the classes of ``'kl'``. Defaults to 1.
        beta (float): Exponent of ``'qfl'``. Defaults to 1.
        floor (float): Weight ``f`` of a place without any foreground, in [0, 1]. Defaults to 0.01.
        boxes (str): ``'ld'`` compares the distributions of the sides (GFL), ``'giou'`` the boxes
            that come of them; ``'auto'`` is ``'ld'`` where both networks have distributions of one
            number of bins. Defaults to ``'auto'``.
        box_temperature (float): Softens the distributions. Defaults to 10, as LD publishes it.
        cls_weight (float): Weight of the classes. Defaults to 1.
        box_weight (float): Weight of the boxes. Defaults to 1.
        centerness_weight (float): Weight of the centerness, where both have one. Defaults to 1.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown choice or a floor outside [0, 1].
    """

    #: The losses are named ``loss_<prefix>_cls`` and so on.
    prefix: str

    def __init__(
        self,
        classes: str = 'kl',
        temperature: float = 1.0,
        beta: float = 1.0,
        floor: float = 0.01,
        boxes: str = 'auto',
        box_temperature: float = 10.0,
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        centerness_weight: float = 1.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        name = type(self).__name__
        if classes not in ('kl', 'qfl'):
            raise ValueError(f"{name}: classes is 'kl' or 'qfl', not {classes!r}.")
        if boxes not in ('auto', 'ld', 'giou'):
            raise ValueError(f"{name}: boxes is 'auto', 'ld' or 'giou', not {boxes!r}.")
        if not 0 <= floor <= 1:
            raise ValueError(f'{name}: floor must be in [0, 1], not {floor}.')
        self.classes = classes
        self.temperature = temperature
        self.beta = beta
        self.floor = floor
        self.boxes = boxes
        self.box_temperature = box_temperature
        self.cls_weight = cls_weight
        self.box_weight = box_weight
        self.centerness_weight = centerness_weight

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Look whether both are dense one-stage detectors.

        Raises:
            ValueError: If one is not.
        """
        for net in (student, teacher):
            if not OneStageAdapter.supports(net):
                raise ValueError(
                    f'{type(self).__name__} compares dense one-stage detectors (RetinaNet, FCOS, '
                    f'GFL, RTMDet), not a {type(net).__name__}: take another head.'
                )
        coded = [net.bbox_head for net in (student, teacher)]
        if all(isinstance(getattr(h, 'bbox_coder', None), DeltaXYWHBBoxCoder) for h in coded):
            # Deltas are of an anchor; who predicts distances from a place has no use for its sides.
            require_like_anchors(type(self).__name__, *coded)

    def dense_responses(
        self, student: Observation, teacher: Observation
    ) -> tuple[DenseResponse, DenseResponse]:
        """Both responses.

        Raises:
            ValueError: If an observation has none, or none of such a detector.
        """
        both = self.responses(student, teacher)
        for response in both:
            if not isinstance(response, DenseResponse):
                raise ValueError(
                    f'{type(self).__name__} needs the answers of dense one-stage detectors, not '
                    f'a {type(response).__name__}.'
                )
        return both

    def compare(self, own: DenseAnswers, other: DenseAnswers) -> dict[str, Tensor]:
        """Losses of paired answers, each times its weight.

        Raises:
            ValueError: If places do not pair, or ``boxes='ld'`` finds no paired distributions.
        """
        name = type(self).__name__
        if own.grid != other.grid:
            raise ValueError(
                f'{name}: the places of student and teacher do not pair. Levels as (stride, '
                f'height, width, anchors): {own.grid} and {other.grid}. Give both the same strides '
                'and anchors, or take mmdfkd.PseudoLabelHead, which needs no pairs.'
            )
        evidence = other.scores.detach().float().amax(-1)
        floored = self.floor + (1 - self.floor) * evidence
        if self.classes == 'kl':
            cls = query_class_loss(own.logits, other.logits, floored, True, self.temperature)
        else:
            cls = quality_focal(own.logits, other.logits, self.beta, floored)
        losses = {
            f'loss_{self.prefix}_cls': self.cls_weight * cls,
            f'loss_{self.prefix}_bbox': self.box_weight * self._box_loss(own, other, evidence),
        }
        if own.centerness is not None and other.centerness is not None:
            losses[f'loss_{self.prefix}_centerness'] = self.centerness_weight * binary_kl(
                own.centerness, other.centerness, weight=evidence
            )
        return losses

    def _box_loss(self, own: DenseAnswers, other: DenseAnswers, evidence: Tensor) -> Tensor:
        sides = own.distributions, other.distributions
        paired = all(x is not None for x in sides) and sides[0].shape == sides[1].shape
        if self.boxes == 'ld' and not paired:
            raise ValueError(
                f"{type(self).__name__}(boxes='ld') needs two heads of distributions (GFL) with "
                "one reg_max: set boxes='giou'."
            )
        if paired and self.boxes != 'giou':
            return localization_distillation(*sides, evidence, self.box_temperature)
        return dense_box_loss(own.boxes, other.boxes, evidence)
