import torch
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor

from mmdfkd.adapters import Observation, Targets
from mmdfkd.registry import MODELS

from .base import DistillHead
from .object_watch import ObjectWatch

# Halving stops here: what is less sure than that is no label.
_LEAST = 0.05


class NoDetectionsError(RuntimeError):
    """The teacher detects nothing surely enough to be learned from."""


@MODELS.register_module()
class PseudoLabelHead(ObjectWatch, DistillHead):
    """The student's own training loss, the teacher's detections being the labels.

    Needs nothing in common with the teacher but the classes: of any family of detectors, at any
    width. Assignment, sampling and weights are those of the student's own ``train_cfg`` and heads,
    as mmdet trains it; features and encoder are not computed twice.

    Where the teacher detects nothing above the threshold in ``patience`` steps on end, that is
    said, and what is configured happens.

    Args:
        threshold (float): Least score of a detection that counts, in (0, 1). Defaults to 0.4.
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
        self, threshold: float = 0.4, on_empty: str = 'warn', patience: int = 200, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < threshold < 1:
            raise ValueError(f'PseudoLabelHead: threshold is in (0, 1), not {threshold}.')
        if on_empty not in ('warn', 'lower', 'stop'):
            raise ValueError(
                f"PseudoLabelHead: on_empty is 'warn', 'lower' or 'stop', not {on_empty!r}."
            )
        if patience < 1:
            raise ValueError(f'PseudoLabelHead: patience is at least 1 step, not {patience}.')
        self.on_empty = on_empty
        self.patience = patience
        # Both are in the checkpoint: a resumed run goes on as it was.
        self.register_buffer('threshold', torch.tensor(float(threshold)))
        self.start_watch()

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_pseudo``, the sum of the student's own terms.

        Raises:
            NoDetectionsError: Where ``on_empty='stop'`` says so.
        """
        least = float(self.threshold)
        objects = [_surest(found, least) for found in teacher.detections]
        self.watch(sum(map(len, objects)))
        return {'loss_pseudo': sum(student.own_loss(objects).values())}

    def nothing_seen(self, said: str) -> None:
        """Do what is configured.

        Raises:
            NoDetectionsError: Where ``on_empty='stop'`` says so.
        """
        if self.on_empty == 'stop':
            raise NoDetectionsError(
                said + 'Lower the threshold, or take images with objects in them '
                '(mmdfkd.LayoutInversionSource).'
            )
        if self.on_empty == 'lower':
            least = min(_LEAST, float(self.threshold))
            self.threshold.mul_(0.5).clamp_(min=least)
            print_log(f'{said}The threshold is now {float(self.threshold):.3f}.', 'current', 30)
        else:
            super().nothing_seen(said)


def _surest(found: InstanceData, least: float) -> InstanceData:
    return found[found.scores >= least]
