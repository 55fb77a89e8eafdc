import torch.nn.functional as F
from torch import Tensor

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import kl_divergence
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


@MODELS.register_module()
class LogitHead(DistillHead):
    """A classifier follows its teacher's softened probabilities (Hinton et al., 2015).

    Args:
        temperature (float): Softens both distributions; see :func:`~mmdfkd.losses.kl_divergence`.
            Defaults to 4.
        ce_weight (float): Weight of a cross-entropy with hard labels, relative to the divergence.
            Defaults to 0.
        hard_labels (str): ``'teacher'`` takes the teacher's first class (DeiT's hard distillation),
            ``'target'`` the class that the image is meant to show. Defaults to ``'teacher'``.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On unknown ``hard_labels``.
    """

    needs = Needs(response=True)

    def __init__(
        self,
        temperature: float = 4.0,
        ce_weight: float = 0.0,
        hard_labels: str = 'teacher',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if hard_labels not in ('teacher', 'target'):
            raise ValueError(f"hard_labels must be 'teacher' or 'target', not {hard_labels!r}.")
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.hard_labels = hard_labels

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_kl``, and ``loss_ce`` where it has a weight."""
        own, other = self.responses(student, teacher)
        losses = {'loss_kl': kl_divergence(own.logits, other.logits, self.temperature)}
        if self.ce_weight:
            labels = other.logits.argmax(-1) if self.hard_labels == 'teacher' else targets.labels
            if labels is None:
                raise ValueError(
                    "LogitHead: hard_labels='target' needs images drawn for a class; use 'teacher'."
                )
            losses['loss_ce'] = self.ce_weight * F.cross_entropy(own.logits, labels)
        return losses
