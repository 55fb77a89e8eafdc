import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import kl_divergence, query_box_loss
from mmdfkd.registry import MODELS

from .base import DistillHead, Needs


@MODELS.register_module()
class BoxResponseHead(DistillHead):
    """The student answers at the teacher's boxes, whatever the families of both.

    A teacher's boxes are its proposals, the boxes of its queries, or those of its surest places.
    A two-stage student answers in its RoI head there; a dense one by the place whose box is
    nearest, a DETR by the query whose box is: a query's knowledge becomes that of a place. Classes:
    divergence with background, where sigmoids are read as a softmax beside a background of zero;
    a mean weighted by ``f + (1 - f) w``, ``w`` the teacher's highest probability of a class. Boxes:
    L1 in shares of the image and GIoU, weighted by ``w``; of a student with a box for each class
    that of the teacher's surest.

    Args:
        temperature (float): Softens the classes. Defaults to 1.
        floor (float): Weight ``f`` of a box without any foreground, in [0, 1]. Defaults to 0.1.
        l1_weight (float): Weight of L1, a mean of the four coordinates. Defaults to 5.
        giou_weight (float): Weight of ``1 - GIoU``. Defaults to 2.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On a floor outside [0, 1].
    """

    any_family = True
    needs = Needs(response=True)

    def __init__(
        self,
        temperature: float = 1.0,
        floor: float = 0.1,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= floor <= 1:
            raise ValueError(f'BoxResponseHead: floor must be in [0, 1], not {floor}.')
        self.temperature = temperature
        self.floor = floor
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Look whether both are detectors.

        Raises:
            ValueError: If one is not.
        """
        for name, net in (('student', student), ('teacher', teacher)):
            if not hasattr(net, 'bbox_head') and not hasattr(net, 'roi_head'):
                raise ValueError(
                    f'BoxResponseHead compares detectors, but the {name} is a '
                    f'{type(net).__name__}: take LogitHead.'
                )

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_box_cls``, ``loss_box_l1`` and ``loss_box_giou``."""
        own, other = self.responses(student, teacher)
        weight = other.logits.detach().float().softmax(-1)[:, :-1].amax(-1)
        floored = self.floor + (1 - self.floor) * weight
        # Where the teacher itself ends up, not where it was asked; the student's box of that class.
        boxes = own.boxes_of(other.logits.detach()[:, :-1].argmax(-1)), other.boxes
        pair = (_in_shares(x, images.shape[-2:]) for x in boxes)
        l1, giou = query_box_loss(*pair, weight)
        return {
            'loss_box_cls': kl_divergence(own.logits, other.logits, self.temperature, floored),
            'loss_box_l1': self.l1_weight * l1,
            'loss_box_giou': self.giou_weight * giou,
        }


def _in_shares(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes in xyxy pixels as ``(cx, cy, w, h)`` in shares of the image."""
    h, w = image_size
    low, high = (boxes / boxes.new_tensor([w, h, w, h])).split(2, -1)
    # Distances of a dense detector may be negative.
    return torch.cat([(low + high) / 2, (high - low).clamp_min(0)], -1)
