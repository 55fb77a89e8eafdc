from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.adapters.towers import entering
from mmdfkd.registry import MODELS

from .base import Needs
from .dense_base import DenseHead


@MODELS.register_module()
class CrossKDHead(DenseHead):
    """The student's features, sent through the rest of the teacher's head, say what it says.

    CrossKD (Wang et al., CVPR 2024): after some convolutions of the student's head its features go
    on through the teacher's. Those cross-head answers follow the teacher's, so the student's own
    predictors are free of what contradicts its labels. They are not reached by this loss, nor
    the convolutions behind: keep :class:`DenseResponseHead` or :class:`PseudoLabelHead` beside it.

    Published: 3 of 4 convolutions, quality focal loss with exponent 1 and weight 1, distributions
    at temperature 1 with weight 4.

    Args:
        convs (int): How many of each tower's convolutions are the student's; 0 hands over its
            pyramid. The channels there must be the teacher's. Defaults to 3.
        restandardise (bool): Whether to give each channel the mean and deviation of the teacher's.
            Defaults to True.
        classes (str): As of :class:`~mmdfkd.heads.dense_base.DenseHead`. Defaults to ``'qfl'``.
        box_temperature (float): Likewise. Defaults to 1.
        box_weight (float): Likewise. Defaults to 4.
        **kwargs: The others of :class:`~mmdfkd.heads.dense_base.DenseHead`.

    Raises:
        ValueError: On an argument that makes no sense.
    """

    needs = Needs(response=True)
    prefix = 'cross'

    def __init__(
        self,
        convs: int = 3,
        restandardise: bool = True,
        classes: str = 'qfl',
        box_temperature: float = 1.0,
        box_weight: float = 4.0,
        **kwargs,
    ) -> None:
        super().__init__(
            classes=classes, box_temperature=box_temperature, box_weight=box_weight, **kwargs
        )
        if convs < 0:
            raise ValueError(f'CrossKDHead: convs must not be negative, as {convs}.')
        self.convs = convs
        self.restandardise = restandardise

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Look whether the teacher's head can read the student's features.

        Raises:
            ValueError: If not: too few convolutions, other levels or another width.
        """
        super().bind(student, teacher)
        own, other = (entering(net.bbox_head, self.convs) for net in (student, teacher))
        if own != other:
            raise ValueError(
                f"CrossKDHead(convs={self.convs}): the student's head has {own[0]} levels of "
                f"{own[1]} channels there, the teacher's {other[0]} of {other[1]}. Give the "
                "student's bbox_head the teacher's feat_channels (convs=0: its neck the teacher's "
                'out_channels), or take mmdfkd.DenseResponseHead, which needs no common width.'
            )

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_cross_cls``, ``loss_cross_bbox`` and, of FCOS, ``loss_cross_centerness``."""
        own, other = self.dense_responses(student, teacher)
        if teacher.through is None:
            raise ValueError("CrossKDHead needs the teacher's head, but its answers are stored.")
        cross = teacher.through(student.memory, own.towers, self.convs, self.restandardise)
        return self.compare(cross, other.answers)
