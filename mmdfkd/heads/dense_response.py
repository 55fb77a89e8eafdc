from torch import Tensor

from mmdfkd.adapters import Observation, Targets
from mmdfkd.registry import MODELS

from .base import Needs
from .dense_base import DenseHead


@MODELS.register_module()
class DenseResponseHead(DenseHead):
    """A dense one-stage student answers as its teacher does, at every place of every level.

    Classes and boxes weighted by the teacher's confidence; of two GFL heads the distributions of
    the boxes' sides (LD, Zheng et al., CVPR 2022), without assignment or ground truth. Both
    networks need one grid: the same strides and anchors. Takes the arguments of
    :class:`~mmdfkd.heads.dense_base.DenseHead`.
    """

    needs = Needs(response=True)
    prefix = 'dense'

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_dense_cls``, ``loss_dense_bbox`` and, of FCOS, ``loss_dense_centerness``."""
        own, other = self.dense_responses(student, teacher)
        return self.compare(own.answers, other.answers)
