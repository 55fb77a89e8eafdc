from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import masked_mimic, pkd
from mmdfkd.registry import MODELS

from .alignment import fit_aligner, make_aligner, output_widths, resize
from .base import DistillHead, Needs


@MODELS.register_module()
class PyramidHead(DistillHead):
    """A detector follows its teacher's pyramid, level by level.

    ``'mimic'`` weights each place by the teacher's own objectness, ``m = f + (1 - f) max_a
    sigmoid(o_a)``, as in G2SD (Huang et al., CVPR 2023) but with a floor ``f`` and in units of the
    teacher's energy. ``'pkd'`` is blind to scale and offset (Cao et al., NeurIPS 2022). Both need
    no ground truth. Levels of another size are resized to the teacher's, widths are aligned by a
    1x1 convolution per level.

    Args:
        mode (str): ``'mimic'`` or ``'pkd'``. Defaults to ``'mimic'``.
        levels (Sequence[int], optional): Levels to compare. Defaults to all.
        floor (float): Weight of sheer background in ``'mimic'``, in [0, 1]; 1 weights every place
            alike and asks for no objectness. Defaults to 0.1.
        align (str): See :func:`~mmdfkd.heads.alignment.make_aligner`. Defaults to ``'auto'``.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown mode or a floor outside [0, 1].
    """

    def __init__(
        self,
        mode: str = 'mimic',
        levels: Sequence[int] | None = None,
        floor: float = 0.1,
        align: str = 'auto',
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if mode not in ('mimic', 'pkd'):
            raise ValueError(f"PyramidHead: mode must be 'mimic' or 'pkd', not {mode!r}.")
        if not 0 <= floor <= 1:
            raise ValueError(f'PyramidHead: floor must be in [0, 1], not {floor}.')
        self.mode = mode
        self.levels = None if levels is None else tuple(levels)
        self.floor = floor
        # Places are weighted by the teacher's objectness; the student is not asked for its own.
        self.needs = Needs(teacher_response=mode == 'mimic' and floor < 1)
        self.align = align
        self.aligners: nn.ModuleList | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """One 1x1 convolution per compared level.

        Raises:
            ValueError: If the pyramids differ in their number of levels, or lack a named one.
        """
        own, other = output_widths(student_widths, 'neck'), output_widths(teacher_widths, 'neck')
        if len(own) != len(other):
            raise ValueError(
                f"PyramidHead: the student's pyramid has {len(own)} levels, the teacher's "
                f'{len(other)}.'
            )
        if self.levels is None:
            self.levels = tuple(range(len(other)))
        if not self.levels or not all(-len(other) <= level < len(other) for level in self.levels):
            raise ValueError(f'PyramidHead: levels {self.levels} of a pyramid of {len(other)}.')
        self.aligners = nn.ModuleList(
            make_aligner(own[level], other[level], conv=True, align=self.align)
            for level in self.levels
        )

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Least squares, level by level, over all places."""
        for level, aligner in zip(self.levels, self.aligners, strict=True):
            map_t = teacher.memory.feats[level]
            map_s = resize(student.memory.feats[level], map_t.shape[-2:])
            fit_aligner(aligner, *(m.movedim(1, -1).flatten(0, 2) for m in (map_s, map_t)))

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_pyramid``: the mean over levels."""
        if self.aligners is None:
            raise RuntimeError(
                'PyramidHead: build_aligners has to be called before the first forward.'
            )
        total = 0.0
        for level, aligner in zip(self.levels, self.aligners, strict=True):
            map_t = teacher.memory.feats[level].detach()
            map_s = resize(aligner(student.memory.feats[level]), map_t.shape[-2:])
            if self.mode == 'pkd':
                total = total + pkd(map_s, map_t)
            else:
                total = total + masked_mimic(map_s, map_t, self._mask(teacher, level, map_t))
        return {'loss_pyramid': total / len(self.aligners)}

    def _mask(self, teacher: Observation, level: int, map_t: Tensor) -> Tensor | None:
        if not self.needs.teacher_response:
            return None
        dense = None if teacher.response is None else teacher.response.dense_logits
        if dense is None or len(dense) != len(teacher.memory.feats):
            raise ValueError(
                "PyramidHead(mode='mimic') needs the teacher's objectness at every level: a "
                'response with '
                'dense_logits; set floor=1 to weight every place alike.'
            )
        objectness = dense[level].detach().float().sigmoid().amax(1, keepdim=True)
        return self.floor + (1 - self.floor) * resize(objectness, map_t.shape[-2:])
