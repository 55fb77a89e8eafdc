from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets, TwoStageAdapter
from mmdfkd.losses import box_delta_loss, kl_divergence
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


@MODELS.register_module()
class RoIResponseHead(DistillHead):
    """The student's box head answers as the teacher's does, at the teacher's proposals.

    Classes: KL divergence over all classes and background, a mean over proposals. Deltas: smooth
        L1, a mean weighted
    by the teacher's class probabilities, class by class where the head has a box for each. Of a
    cascade every stage is asked where the teacher's stage before it moved the boxes, and the loss
    is the mean over stages; of unequal numbers of stages the first ones pair.

    Args:
        temperature (float): Softens the classes. Defaults to 1.
        background_weight (float): Weight, in the mean over proposals, of one that the teacher calls
            background; one that it calls an object has 1. Defaults to 1.
        delta_weight (float): Weight of the deltas relative to the classes. Defaults to 1.
        beta (float): Where smooth L1 turns linear, in the coder's units. Defaults to 1.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On a negative background weight.
    """

    needs = Needs(response=True)

    def __init__(
        self,
        temperature: float = 1.0,
        background_weight: float = 1.0,
        delta_weight: float = 1.0,
        beta: float = 1.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if background_weight < 0:
            raise ValueError(
                f'RoIResponseHead: background_weight must not be negative, as {background_weight}.'
            )
        self.temperature = temperature
        self.background_weight = background_weight
        self.delta_weight = delta_weight
        self.beta = beta

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Look whether both have box heads that code boxes alike.

        Raises:
            ValueError: If not.
        """
        stages = []
        for name, net in (('student', student), ('teacher', teacher)):
            if not TwoStageAdapter.supports(net):
                raise ValueError(
                    f'RoIResponseHead compares box heads of two-stage detectors '
                    f'({TwoStageAdapter.examples}), but the {name} is a {type(net).__name__}: '
                    'take mmdfkd.BoxResponseHead or mmdfkd.PseudoLabelHead.'
                )
            heads = net.roi_head.bbox_head
            heads = list(heads) if isinstance(heads, nn.ModuleList) else [heads]
            stages.append([box_coding(head) for head in heads])
        for i, pair in enumerate(zip(*stages, strict=False)):
            if pair[0] != pair[1]:
                raise ValueError(
                    f'RoIResponseHead: stage {i} of the student codes boxes as {pair[0]}, of the '
                    f"teacher as {pair[1]}: give the student's bbox_head the teacher's bbox_coder "
                    'and reg_class_agnostic, or take mmdfkd.BoxResponseHead, which compares boxes.'
                )

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_roi_cls`` and ``loss_roi_bbox``."""
        own, other = self.responses(student, teacher)
        if own.deltas is None or other.deltas is None:
            raise ValueError(
                'RoIResponseHead needs a two-stage detector: the response has no deltas.'
            )
        stages = [x.stages or ((x.logits, x.deltas),) for x in (own, other)]
        terms = [self._compare(*pair) for pair in zip(*stages, strict=False)]
        cls, box = (sum(values) / len(terms) for values in zip(*terms, strict=True))
        # Stages of the student that have no counterpart get a gradient of zero.
        rest = sum((x.sum() for stage in stages[0][len(terms) :] for x in stage), 0.0)
        return {'loss_roi_cls': cls + rest * 0.0, 'loss_roi_bbox': self.delta_weight * box}

    def _compare(
        self, own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Classes and deltas of one stage."""
        foreground = other[0].detach().float().softmax(-1)[:, :-1]
        evidence = foreground.sum(1)
        weight = evidence + self.background_weight * (1 - evidence)
        return (
            kl_divergence(own[0], other[0], self.temperature, weight),
            box_delta_loss(own[1], other[1], foreground, self.beta),
        )


def box_coding(head: nn.Module) -> str:
    """How a head of mmdet codes boxes: coder, means, deviations, a box for each class or one."""
    coder = head.bbox_coder
    means, stds = (
        [round(float(x), 6) for x in getattr(coder, name, None) or ()] for name in ('means', 'stds')
    )
    agnostic = getattr(head, 'reg_class_agnostic', True)
    return f'{type(coder).__name__}(means={means}, stds={stds}, reg_class_agnostic={agnostic})'
