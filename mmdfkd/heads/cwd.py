from collections.abc import Mapping

from torch import Tensor, nn

from mmdfkd.adapters import Observation
from mmdfkd.losses import cwd
from mmdfkd.registry import MODELS

from .alignment import fit_aligner, make_aligner, resize
from .token_head import TokenHead


@MODELS.register_module()
class ChannelWiseHead(TokenHead):
    """Each channel peaks where the teacher's does (CWD, Shu et al., ICCV 2021).

    Args:
        temperature (float): Softens the distributions over places. Defaults to 1.
        standardize (bool): Standardise each channel first, as RTMDet's variant. Defaults to False.
        align (str | Mapping): See :func:`~mmdfkd.heads.alignment.make_aligner`. Defaults to
            ``'auto'``.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On a temperature that is not positive, or taps that do not pair.
    """

    loss_key = 'loss_cwd'

    def __init__(
        self,
        temperature: float = 1.0,
        standardize: bool = False,
        align: str | Mapping = 'auto',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if temperature <= 0:
            raise ValueError(f'ChannelWiseHead: temperature must be positive, not {temperature}.')
        self.temperature = temperature
        self.standardize = standardize
        self.align = align
        self.aligners: nn.ModuleList | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """An aligner per pair."""
        super().build_aligners(student_widths, teacher_widths)
        self.aligners = nn.ModuleList(
            make_aligner(s, t, conv=True, align=self.align)
            for s, t in zip(*self.widths, strict=True)
        )

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Least squares over the places."""
        for index, aligner in enumerate(self.aligners):
            map_t = self.patches(teacher, 1, index)
            map_s = resize(self.patches(student, 0, index), map_t.shape[-2:])
            fit_aligner(aligner, *(m.movedim(1, -1).flatten(0, 2) for m in (map_s, map_t)))

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Channel by channel."""
        map_t = self.patches(teacher, 1, index)
        map_s = self.aligners[index](self.patches(student, 0, index))
        return cwd(resize(map_s, map_t.shape[-2:]), map_t, self.temperature, self.standardize)
