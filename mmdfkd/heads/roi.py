from torch import Tensor

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import box_delta_loss, kl_divergence
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


@MODELS.register_module()
class RoIResponseHead(DistillHead):
    """The student's box head answers as the teacher's does, at the teacher's proposals.

    Classes: KL divergence over all classes and background, a mean over proposals. Deltas: smooth
        L1, a mean weighted
    by the teacher's class probabilities, class by class where the head has a box for each.

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

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_roi_cls`` and ``loss_roi_bbox``."""
        own, other = self.responses(student, teacher)
        if own.deltas is None or other.deltas is None:
            raise ValueError(
                'RoIResponseHead needs a two-stage detector: the response has no deltas.'
            )
        foreground = other.logits.detach().float().softmax(-1)[:, :-1]
        evidence = foreground.sum(1)
        weight = evidence + self.background_weight * (1 - evidence)
        return {
            'loss_roi_cls': kl_divergence(own.logits, other.logits, self.temperature, weight),
            'loss_roi_bbox': self.delta_weight
            * box_delta_loss(own.deltas, other.deltas, foreground, self.beta),
        }
