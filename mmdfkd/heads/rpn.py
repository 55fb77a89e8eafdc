import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Response, Targets
from mmdfkd.losses import binary_kl, box_delta_loss
from mmdfkd.registry import MODELS

from .anchors import require_like_anchors
from .base import DistillHead, Needs
from .roi import box_coding


@MODELS.register_module()
class RPNResponseHead(DistillHead):
    """The student's region proposal network answers as the teacher's does, at every anchor.

    Objectness: soft binary cross-entropy less the teacher's entropy (same gradient, zero at
        agreement), a mean over
    anchors weighted by ``f + (1 - f) sigmoid(o^t)``, since most anchors see nothing. Deltas: smooth
    L1, a mean weighted by the teacher's objectness. Anchors of all levels share one mean.

    Args:
        temperature (float): Softens the objectness. Defaults to 1.
        floor (float): Weight ``f`` of an anchor without any objectness, in [0, 1]. Defaults to 0.1.
        delta_weight (float): Weight of the deltas relative to the objectness. Defaults to 1.
        beta (float): Where smooth L1 turns linear, in the coder's units. Defaults to 1 / 9, the
            usual one of an RPN.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On a floor outside [0, 1].
    """

    needs = Needs(response=True)

    def __init__(
        self,
        temperature: float = 1.0,
        floor: float = 0.1,
        delta_weight: float = 1.0,
        beta: float = 1 / 9,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= floor <= 1:
            raise ValueError(f'RPNResponseHead: floor must be in [0, 1], not {floor}.')
        self.temperature = temperature
        self.floor = floor
        self.delta_weight = delta_weight
        self.beta = beta

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Look whether both region proposal networks, where they are, have one code and anchors.

        Raises:
            ValueError: If not.
        """
        rpns = [getattr(net, 'rpn_head', None) for net in (student, teacher)]
        if None in rpns:
            # A two-stage DETR proposes without one.
            return
        own, other = map(box_coding, rpns)
        if own != other:
            raise ValueError(
                f"RPNResponseHead: the student's RPN codes boxes as {own}, the teacher's as "
                f'{other}: give both one bbox_coder.'
            )
        require_like_anchors('RPNResponseHead', *rpns)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_rpn_cls`` and ``loss_rpn_bbox``."""
        own, other = self.responses(student, teacher)
        logits_s, deltas_s = self._anchors(own)
        logits_t, deltas_t = (x.detach() for x in self._anchors(other))
        if logits_s.shape != logits_t.shape:
            raise ValueError(
                f'RPNResponseHead: the student has {len(logits_s)} anchors and the teacher '
                f'{len(logits_t)} on '
                'these images: give both the same strides, scales and ratios.'
            )
        objectness = logits_t.float().sigmoid()
        weight = self.floor + (1 - self.floor) * objectness
        return {
            'loss_rpn_cls': binary_kl(logits_s, logits_t, self.temperature, weight),
            'loss_rpn_bbox': self.delta_weight
            * box_delta_loss(deltas_s, deltas_t, objectness, self.beta),
        }

    @staticmethod
    def _anchors(response: Response) -> tuple[Tensor, Tensor]:
        """Logits ``[n]`` and deltas ``[n, 4]`` of all anchors, in one order for both."""
        if response.dense_logits is None or response.dense_deltas is None:
            raise ValueError(
                'RPNResponseHead needs a two-stage detector: the response has no dense part.'
            )
        logits, deltas = [], []
        for cls, reg in zip(response.dense_logits, response.dense_deltas, strict=True):
            if reg.shape[1] != 4 * cls.shape[1]:
                raise ValueError(
                    f'RPNResponseHead: {cls.shape[1]} logits and {reg.shape[1]} deltas a position '
                    'do not pair; '
                    'the RPN must use sigmoid objectness.'
                )
            # The RPN's own order: position-major, the anchors of a position together.
            logits.append(cls.permute(0, 2, 3, 1).flatten())
            deltas.append(reg.permute(0, 2, 3, 1).reshape(-1, 4))
        return torch.cat(logits), torch.cat(deltas)
