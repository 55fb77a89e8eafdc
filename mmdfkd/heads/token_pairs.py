import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from mmengine.utils import is_seq_of
from torch import Tensor

from mmdfkd.adapters import Observation

from .alignment import output_widths, resize
from .base import DistillHead, Needs

_SIDES = ('student', 'teacher')


class TokenMap(NamedTuple):
    """Tokens of one place of one network.

    Attributes:
        prefix: Those before the patches, ``[B, P, D]``.
        patches: ``[B, N, D]``, row by row; none (``N = 0``) where the output is a vector.
        grid: ``(H, W)`` with ``H * W = N``; None where it is not known.
    """

    prefix: Tensor
    patches: Tensor
    grid: tuple[int, int] | None


class TokenPairs(DistillHead):
    """Base of heads that compare tokens of both networks in pairs of layers, as they are.

    Nothing is projected: what is compared depends on no width. Patches of unequal grids are
    brought to the teacher's by resizing the student's.

    Args:
        taps_student (Sequence[str]): Modules of the student, such as ``backbone.layers.3``; none
            for the output of backbone and neck. Defaults to none.
        taps_teacher (Sequence[str], optional): Their counterparts, in the same order. Defaults to
            the same names.
        prefix_tokens (int | Sequence[int]): How many of the tokens ``[B, L, C]`` precede the
            patches: one number, or the student's and the teacher's. Vectors and maps have none.
            Defaults to 1.
        channels_last (bool, optional): Whether 4-D outputs are ``[B, H, W, C]`` (blocks of ViTDet)
            instead of ``[B, C, H, W]``. Defaults to what the widths say.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: On taps that do not pair, or a negative number of prefix tokens.
    """

    #: Whether tokens have to fill a grid of the image's proportions; windows do not.
    _whole_images = True
    #: Whether the student's patches are resized where grids differ.
    _resizes = True

    def __init__(
        self,
        taps_student: Sequence[str] = (),
        taps_teacher: Sequence[str] | None = None,
        prefix_tokens: int | Sequence[int] = 1,
        channels_last: bool | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        who = type(self).__name__
        if isinstance(taps_student, str) or isinstance(taps_teacher, str):
            raise ValueError(f'{who}: taps are a list of names, not one string.')
        taps_teacher = taps_student if taps_teacher is None else taps_teacher
        if len(taps_student) != len(taps_teacher):
            raise ValueError(
                f'{who} pairs {len(taps_student)} taps of the student with {len(taps_teacher)} of '
                'the teacher: name as many of each.'
            )
        prefix = (prefix_tokens,) * 2 if isinstance(prefix_tokens, int) else tuple(prefix_tokens)
        if len(prefix) != 2 or min(prefix) < 0:
            raise ValueError(
                f'{who}: prefix_tokens is one number or (student, teacher), not {prefix_tokens}.'
            )
        self.needs = Needs(taps_student=tuple(taps_student), taps_teacher=tuple(taps_teacher))
        self.prefix_tokens = prefix
        self.channels_last = channels_last
        self.widths: tuple[tuple[int, ...], ...] | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """Take down the widths: they tell where the channels of a map are."""
        taps = (self.needs.taps_student, self.needs.taps_teacher)
        self.widths = tuple(
            tuple(output_widths(widths, name)[-1] for name in names or ('neck',))
            for widths, names in zip((student_widths, teacher_widths), taps, strict=True)
        )

    def pairs(self, student: Observation, teacher: Observation) -> list[tuple[TokenMap, TokenMap]]:
        """Tokens of both networks, pair by pair, on one grid where the head wants that.

        Raises:
            RuntimeError: If :meth:`build_aligners` was not called.
            ValueError: If an output has no tokens, or grids cannot be found.
        """
        if self.widths is None:
            raise RuntimeError(
                f'{type(self).__name__}: build_aligners has to be called before the first forward.'
            )
        found = []
        for index in range(len(self.widths[0])):
            own, other = self._tokens(student, 0, index), self._tokens(teacher, 1, index)
            if self._whole_images or own.patches.shape[1] != other.patches.shape[1]:
                own, other = self._placed(student, own, 0), self._placed(teacher, other, 1)
            if self._resizes and own.grid and other.grid and own.grid != other.grid:
                maps = own.patches.transpose(1, 2).unflatten(2, own.grid)
                patches = resize(maps, other.grid).flatten(2).transpose(1, 2)
                own = own._replace(patches=patches, grid=other.grid)
            found.append((own, other))
        return found

    def patch_pairs(
        self, student: Observation, teacher: Observation
    ) -> list[tuple[TokenMap, TokenMap]]:
        """Like :meth:`pairs`, where each has patches.

        Raises:
            ValueError: If an output is a vector.
        """
        found = self.pairs(student, teacher)
        for index, pair in enumerate(found):
            for side, tokens in enumerate(pair):
                if not tokens.patches.shape[1]:
                    raise ValueError(
                        f"{type(self).__name__} compares patches, but the {_SIDES[side]}'s "
                        f'{self._place(side, index)} is a vector: tap blocks, such as '
                        'backbone.layers.3.'
                    )
        return found

    def _place(self, side: int, index: int) -> str:
        taps = (self.needs.taps_student, self.needs.taps_teacher)[side]
        return taps[index] if taps else 'output'

    def _tokens(self, observation: Observation, side: int, index: int) -> TokenMap:
        place = self._place(side, index)
        memory = observation.memory
        feature = memory.feats[-1] if place == 'output' else memory.taps[place]
        if is_seq_of(feature, Tensor) and all(part.dim() == 2 for part in feature):
            # A distilled DeiT returns its class and its distillation token as a pair.
            feature = torch.stack(tuple(feature), 1)
            return TokenMap(feature, feature[:, :0], None)
        if not isinstance(feature, Tensor) or feature.dim() not in (2, 3, 4):
            shape = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise ValueError(
                f'{type(self).__name__} compares vectors, tokens and maps, but the '
                f"{_SIDES[side]}'s {place} is {shape}."
            )
        if feature.dim() == 2:
            return TokenMap(feature[:, None], feature[:, None][:, :0], None)
        if feature.dim() == 4:
            if not self._is_channels_last(feature, self.widths[side][index], place):
                feature = feature.permute(0, 2, 3, 1)
            patches = feature.flatten(1, 2)
            return TokenMap(patches[:, :0], patches, tuple(feature.shape[1:3]))
        prefix = self.prefix_tokens[side]
        if feature.shape[1] <= prefix:
            raise ValueError(
                f"{type(self).__name__}: the {_SIDES[side]}'s {place} has {feature.shape[1]} "
                f'tokens; {prefix} of them cannot precede the patches. Set '
                'prefix_tokens=(student, teacher).'
            )
        return TokenMap(feature[:, :prefix], feature[:, prefix:], None)

    def _placed(self, observation: Observation, tokens: TokenMap, side: int) -> TokenMap:
        """With the grid that the patches fill in an image of these proportions."""
        patches = tokens.patches.shape[1]
        if tokens.grid is not None or not patches:
            return tokens
        height, width = observation.memory.image_size
        rows = round(math.sqrt(patches * height / width))
        columns = patches // max(rows, 1)
        if rows * columns != patches:
            raise ValueError(
                f"{type(self).__name__}: {patches} tokens of the {_SIDES[side]}'s, without "
                f'{self.prefix_tokens[side]} prefix tokens, are no grid of the proportions of the '
                f'{height} x {width} px image. Set prefix_tokens=(student, teacher).'
            )
        return tokens._replace(grid=(rows, columns))

    def _is_channels_last(self, feature: Tensor, width: int, place: str) -> bool:
        if self.channels_last is not None:
            return self.channels_last
        first, last = feature.shape[1] == width, feature.shape[3] == width
        if first == last:
            raise ValueError(
                f'{type(self).__name__} cannot tell where the {width} channels of '
                f"{place}'s output {tuple(feature.shape)} are; set channels_last."
            )
        return last
