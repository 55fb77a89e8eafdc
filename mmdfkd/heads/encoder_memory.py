from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import masked_mimic
from mmdfkd.registry import MODELS

from .alignment import fit_aligner, make_aligner, read_align
from .base import DistillHead, Needs
from .query_base import require_detrs


@MODELS.register_module()
class EncoderMemoryHead(DistillHead):
    """The student's encoder leaves its decoder the same memory as the teacher's.

    What a decoder reads, not what the backbone gives (CLoCKDistill, Lan and Tian, WACV 2026). Mean
    squared error over tokens, a share of the teacher's energy; a token weighs ``f + (1 - f) s``,
    ``s`` the highest score of the teacher's boxes that cover it, in place of the paper's labelled
    objects. Both encoders need the same grids.

    Args:
        floor (float): Weight ``f`` of a token outside all boxes, in [0, 1]. Defaults to 0.1.
        align (str | Mapping): See :func:`~mmdfkd.heads.alignment.make_aligner`. Defaults to
            ``'auto'``.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On a floor outside [0, 1] or an unknown ``align``.
    """

    def __init__(self, floor: float = 0.1, align: str | Mapping = 'auto', **kwargs) -> None:
        super().__init__(**kwargs)
        if not 0 <= floor <= 1:
            raise ValueError(f'EncoderMemoryHead: floor must be in [0, 1], not {floor}.')
        read_align(align)
        self.floor = floor
        self.align = align
        self.needs = Needs(teacher_response=floor < 1)
        self.aligner: nn.Module | None = None
        self._widths: tuple[int, int] | None = None

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """Read both encoders' widths.

        Raises:
            ValueError: If one of both is no DETR.
        """
        require_detrs(type(self).__name__, student, teacher)
        self._widths = int(student.embed_dims), int(teacher.embed_dims)

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """One aligner."""
        self.aligner = make_aligner(*self._widths, conv=False, align=self.align)

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Least squares over all tokens."""
        own, other = self._tokens(student, teacher)
        fit_aligner(self.aligner, own.flatten(0, 1), other.flatten(0, 1))

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_encoder_memory``."""
        own, other = self._tokens(student, teacher)
        if self.floor < 1:
            mask = self.mask(teacher)
        else:
            padding = teacher.memory.encoder.mask
            mask = None if padding is None else (~padding).to(other)
        mask = None if mask is None else mask[..., None]
        return {'loss_encoder_memory': masked_mimic(self.aligner(own), other, mask, dim=-1)}

    def _tokens(self, student: Observation, teacher: Observation) -> tuple[Tensor, Tensor]:
        own, other = student.memory.encoder, teacher.memory.encoder
        if own.shapes != other.shapes:
            raise ValueError(
                f"EncoderMemoryHead: the student's memory has the grids {own.shapes}, the "
                f"teacher's {other.shapes}: give both necks the same levels and strides."
            )
        return own.tokens, other.tokens.detach()

    @torch.no_grad()
    def mask(self, teacher: Observation) -> Tensor:
        """Weight of each token, ``[B, N]``."""
        h, w = teacher.memory.covered
        padding = teacher.memory.encoder.mask
        rows = []
        for boxes, scores in zip(teacher.probe.boxes, teacher.probe.scores, strict=True):
            levels = []
            for rows_of, columns_of in teacher.memory.encoder.shapes:
                y = (torch.arange(rows_of, device=boxes.device) + 0.5) * h / rows_of
                x = (torch.arange(columns_of, device=boxes.device) + 0.5) * w / columns_of
                x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
                inside = ((x >= x0) & (x <= x1))[:, None] & ((y >= y0) & (y <= y1))[:, :, None]
                score = inside * scores[:, None, None]
                levels.append(score.amax(0).flatten() if len(score) else score.sum(0).flatten())
            rows.append(torch.cat(levels))
        weight = self.floor + (1 - self.floor) * torch.stack(rows)
        return weight if padding is None else weight * ~padding
