from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import noise_adapted_nll, noise_matrix
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


@MODELS.register_module()
class NoiseAdaptedHead(DistillHead):
    """The teacher's decisions as labels that may be wrong (Attention Probe, ICASSP 2022).

    :func:`~mmdfkd.losses.noise_adapted_nll` with a matrix of confusions that is learned with the
    student (published: Adam at 1e-3 of its own; set it by ``paramwise_cfg`` for ``scores``) and
    dropped at export. Published weight 1 beside KL of weight 1 and temperature 4.

    Args:
        num_classes (int): Of teacher and student.
        accuracy (float | Sequence[float]): Of the teacher, in [0, 1]; one number or one for each
            class. Published: 0.9665 (CIFAR-10), 0.7630 (CIFAR-100), 0.8118 (ImageNet).
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On fewer than two classes or an accuracy outside [0, 1].
    """

    needs = Needs(response=True)

    def __init__(self, num_classes: int, accuracy: float | Sequence[float], **kwargs) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f'NoiseAdaptedHead needs two classes or more, not {num_classes}.')
        self.scores = nn.Parameter(torch.zeros(num_classes, num_classes - 1))
        self.register_buffer('accuracy', torch.as_tensor(accuracy, dtype=torch.float32))
        noise_matrix(self.scores, self.accuracy)  # raises what is wrong with them

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_noise``."""
        own, other = self.responses(student, teacher)
        if other.logits.shape[-1] != len(self.scores):
            raise ValueError(
                f'NoiseAdaptedHead: num_classes is {len(self.scores)}, but the teacher has '
                f'{other.logits.shape[-1]} classes.'
            )
        noise = noise_matrix(self.scores, self.accuracy)
        return {'loss_noise': noise_adapted_nll(own.logits, other.logits.argmax(-1), noise)}
