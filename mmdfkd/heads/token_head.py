from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from mmdfkd.adapters import Observation, Targets

from .alignment import output_widths
from .base import DistillHead, Needs
from .tokens import Grid, read_tokens, split_tokens


class TokenHead(DistillHead):
    """Compares features of both networks pair by pair, as tokens or as maps of patches.

    A pair is a module of either network, or a level of their outputs; the loss is the mean over the
    pairs, so that naming more changes no scale.

    Attributes:
        loss_key (str): Key of the loss.
        widths: After :meth:`build_aligners`, the channels of the student's and of the teacher's
            features, pair by pair.

    Args:
        taps_student (Sequence[str]): Modules of the student, such as ``backbone.layers.3``; none
            for the output of backbone and neck. Defaults to none.
        taps_teacher (Sequence[str], optional): Their counterparts, in the same order. Defaults to
            the same names.
        levels (Sequence[int], optional): Without taps: which outputs of backbone and neck, such as
            the levels of a pyramid, maps ``[B, C, H, W]``. Defaults to the last.
        prefix_tokens (int | Sequence[int]): How many of the tokens ``[B, L, C]`` precede the
            patches: one number, or the student's and the teacher's. Vectors and maps have none.
            Defaults to 1.
        channels_last (bool | Sequence[bool | None], optional): Whether 4-D outputs are
            ``[B, H, W, C]`` (blocks of ViTDet) instead of ``[B, C, H, W]``: one value, or the
            student's and the teacher's. Defaults to what the widths say.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: If the taps do not pair, or both taps and levels are named.
    """

    any_family = True
    loss_key: str

    def __init__(
        self,
        taps_student: Sequence[str] = (),
        taps_teacher: Sequence[str] | None = None,
        levels: Sequence[int] | None = None,
        prefix_tokens: int | Sequence[int] = 1,
        channels_last: bool | Sequence[bool | None] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        who = type(self).__name__
        taps_teacher = taps_student if taps_teacher is None else taps_teacher
        if len(taps_student) != len(taps_teacher):
            raise ValueError(
                f'{who} pairs {len(taps_student)} taps of the student with {len(taps_teacher)} of '
                'the teacher: name as many of each.'
            )
        if levels is not None and (taps_student or not levels):
            raise ValueError(f'{who} compares taps or levels: name one kind, and at least one.')
        self.needs = Needs(taps_student=tuple(taps_student), taps_teacher=tuple(taps_teacher))
        self.levels = (-1,) if levels is None else tuple(levels)
        self.prefix_tokens = (
            (prefix_tokens,) * 2 if isinstance(prefix_tokens, int) else tuple(prefix_tokens)
        )
        # Levels are maps of the toolboxes' own layout, also where 256 channels meet 256 rows.
        last = False if levels is not None else channels_last
        self.channels_last = (last,) * 2 if last is None or isinstance(last, bool) else tuple(last)
        self.widths: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """Learn the widths of each pair; subclasses make their layers of them.

        Raises:
            KeyError: If a tap is not among the widths.
            ValueError: If a network has no such level.
        """
        self.widths = tuple(
            tuple(self._width(found, place, who) for place in self._places(side))
            for side, (found, who) in enumerate(
                ((student_widths, 'student'), (teacher_widths, 'teacher'))
            )
        )

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """The mean over the pairs."""
        if self.widths is None:
            raise RuntimeError(
                f'{type(self).__name__}: build_aligners has to be called before the first forward.'
            )
        pairs = range(len(self.widths[0]))
        total = sum(self.pair_loss(index, student, teacher) for index in pairs)
        return {self.loss_key: total / len(pairs)}

    @abstractmethod
    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """The loss of one pair, a scalar."""

    def tokens(self, observation: Observation, side: int, index: int) -> tuple[Tensor, Grid | None]:
        """Tokens ``[B, L, C]``, patches last, and the patches' grid (None without patches).

        Args:
            observation (Observation): Of the network.
            side (int): 0 for the student, 1 for the teacher.
            index (int): Of the pair.
        """
        place, memory = self._places(side)[index], observation.memory
        tapped = isinstance(place, str)
        feature = memory.taps[place] if tapped else memory.feats[place]
        return read_tokens(
            feature if side == 0 else _constant(feature),
            self.widths[side][index],
            memory.image_size,
            self.prefix_tokens[side],
            self.channels_last[side],
            f'{type(self).__name__} {("student", "teacher")[side]}',
            place if tapped else 'output',
        )

    def patches(self, observation: Observation, side: int, index: int) -> Tensor:
        """Patches alone, as a map ``[B, C, H, W]``.

        Raises:
            ValueError: If the network gives a vector there.
        """
        _, patches = split_tokens(*self.tokens(observation, side, index))
        if patches is None:
            raise ValueError(
                f'{type(self).__name__} compares patches, but the {("student", "teacher")[side]} '
                "gives a vector: tap a block, or set out_type='raw' or 'featmap'."
            )
        return patches

    def _places(self, side: int) -> tuple[str, ...] | tuple[int, ...]:
        return (self.needs.taps_student, self.needs.taps_teacher)[side] or self.levels

    def _width(self, widths: Mapping, place: str | int, who: str) -> int:
        if isinstance(place, str):
            return output_widths(widths, place)[-1]
        found = output_widths(widths, 'neck')
        if not -len(found) <= place < len(found):
            raise ValueError(
                f'{type(self).__name__}: level {place} of the {who}, which has {len(found)}.'
            )
        return found[place]


def _constant(feature):
    if isinstance(feature, Tensor):
        return feature.detach()
    return type(feature)(map(_constant, feature)) if isinstance(feature, (tuple, list)) else feature
