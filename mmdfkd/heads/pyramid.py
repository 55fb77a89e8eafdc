from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import masked_mimic, pkd
from mmdfkd.registry import MODELS

from .alignment import fit_aligner, make_aligner, output_widths, resize
from .base import DistillHead, Needs


class PyramidLevels(DistillHead):
    """Compares the pyramids of two detectors, level by level.

    Levels are paired by their stride where both pyramids have some in common, as detectors of two
    families do (Faster R-CNN's P2 to P6, RetinaNet's P3 to P7: P3 to P6 are compared); otherwise by
    their order. Levels of another size are resized to the teacher's, widths are aligned level by
    level, by default by a 1x1 convolution.

    Attributes:
        pairs: After :meth:`build_aligners`, which level of the student goes with which of the
            teacher.
        teacher_widths: The teacher's channels there.

    Args:
        levels (Sequence[int], optional): Levels of the teacher's to compare. Defaults to all that
            the student has.
        align (str | Mapping): See :func:`~mmdfkd.heads.alignment.make_aligner`. Defaults to
            ``'auto'``.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.
    """

    any_family = True

    def __init__(
        self, levels: Sequence[int] | None = None, align: str | Mapping = 'auto', **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.levels = None if levels is None else tuple(levels)
        self.align = align
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.teacher_widths: tuple[int, ...] = ()
        self.aligners: nn.ModuleList | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """One aligner per compared level.

        Raises:
            ValueError: If the pyramids have no level in common and differ in their number, or lack
                a named one.
        """
        own, other = output_widths(student_widths, 'neck'), output_widths(teacher_widths, 'neck')
        pairs = self._paired(
            own, other, student_widths.get('neck_sizes'), teacher_widths.get('neck_sizes')
        )
        if self.levels is not None:
            known = {level: pair for pair in pairs for level in _names(pair[1], other)}
            if not self.levels or not all(level in known for level in self.levels):
                raise ValueError(
                    f'{type(self).__name__}: levels {self.levels} of a pyramid of {len(other)}, of '
                    f'which {sorted(t for _, t in pairs)} are compared.'
                )
            pairs = [known[level] for level in self.levels]
        self.pairs = tuple(pairs)
        self.teacher_widths = tuple(other[t] for _, t in pairs)
        self.aligners = nn.ModuleList(
            make_aligner(own[s], other[t], conv=True, align=self.align) for s, t in pairs
        )

    def _paired(
        self,
        own: Sequence[int],
        other: Sequence[int],
        own_sizes: Sequence | None,
        other_sizes: Sequence | None,
    ) -> list[tuple[int, int]]:
        if own_sizes and other_sizes and list(own_sizes) != list(other_sizes):
            free, pairs = list(enumerate(own_sizes)), []
            for t, size in enumerate(other_sizes):
                match = next((found for found in free if found[1] == size), None)
                if match is not None:
                    free.remove(match)
                    pairs.append((match[0], t))
            if pairs:
                return pairs
        if len(own) != len(other):
            raise ValueError(
                f"{type(self).__name__}: the student's pyramid has {len(own)} levels, the "
                f"teacher's {len(other)}, and no stride is common to both."
            )
        return [(i, i) for i in range(len(other))]

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Least squares, level by level, over all places."""
        for (s, t), aligner in zip(self.pairs, self.aligners, strict=True):
            map_t = teacher.memory.feats[t]
            map_s = resize(student.memory.feats[s], map_t.shape[-2:])
            fit_aligner(aligner, *(m.movedim(1, -1).flatten(0, 2) for m in (map_s, map_t)))

    def paired_maps(
        self, student: Observation, teacher: Observation
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The student's map, aligned and resized, and the teacher's, level by level.

        Raises:
            RuntimeError: Before :meth:`build_aligners`.
        """
        if self.aligners is None:
            raise RuntimeError(
                f'{type(self).__name__}: build_aligners has to be called before the first forward.'
            )
        for (s, t), aligner in zip(self.pairs, self.aligners, strict=True):
            map_t = teacher.memory.feats[t].detach()
            yield resize(aligner(student.memory.feats[s]), map_t.shape[-2:]), map_t


def _names(level: int, pyramid: Sequence) -> tuple[int, int]:
    """Both indices of a level, from the front and from the back."""
    return level, level - len(pyramid)


@MODELS.register_module()
class PyramidHead(PyramidLevels):
    """A detector follows its teacher's pyramid, level by level.

    ``'mimic'`` weights each place by the teacher's own objectness, ``m = f + (1 - f) max_a
    sigmoid(o_a)``, as in G2SD (Huang et al., CVPR 2023) but with a floor ``f`` and in units of the
    teacher's energy. ``'pkd'`` is blind to scale and offset (Cao et al., NeurIPS 2022). Both need
    no ground truth. How levels are paired: :class:`PyramidLevels`.

    Args:
        mode (str): ``'mimic'`` or ``'pkd'``. Defaults to ``'mimic'``.
        levels (Sequence[int], optional): Levels of the teacher's to compare. Defaults to all that
            the student has.
        floor (float): Weight of sheer background in ``'mimic'``, in [0, 1]; 1 weights every place
            alike and asks for no objectness. Defaults to 0.1.
        align (str | Mapping): See :func:`~mmdfkd.heads.alignment.make_aligner`. Defaults to
            ``'auto'``.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On an unknown mode or a floor outside [0, 1].
    """

    def __init__(
        self,
        mode: str = 'mimic',
        levels: Sequence[int] | None = None,
        floor: float = 0.1,
        align: str | Mapping = 'auto',
        **kwargs,
    ) -> None:
        super().__init__(levels, align, **kwargs)
        if mode not in ('mimic', 'pkd'):
            raise ValueError(f"PyramidHead: mode must be 'mimic' or 'pkd', not {mode!r}.")
        if not 0 <= floor <= 1:
            raise ValueError(f'PyramidHead: floor must be in [0, 1], not {floor}.')
        self.mode = mode
        self.floor = floor
        # Places are weighted by the teacher's objectness; the student is not asked for its own.
        self.needs = Needs(teacher_response=mode == 'mimic' and floor < 1)

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_pyramid``: the mean over levels."""
        total = 0.0
        for index, (map_s, map_t) in enumerate(self.paired_maps(student, teacher)):
            level = self.pairs[index][1]
            if self.mode == 'pkd':
                total = total + pkd(map_s, map_t)
            else:
                total = total + masked_mimic(map_s, map_t, self._mask(teacher, level, map_t))
        return {'loss_pyramid': total / len(self.pairs)}

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
