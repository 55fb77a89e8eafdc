from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from mmdfkd.adapters import Observation, Targets

from .alignment import resize
from .token_head import TokenHead
from .tokens import Grid

_SIDES = ('student', 'teacher')


class Places(NamedTuple):
    """Tokens of one network at one tap.

    Attributes:
        prefix: Those before the patches, ``[B, P, D]``.
        patches: ``[B, N, D]``, row by row; none (``N = 0``) where the output is a vector.
        grid: ``(H, W)`` with ``H * W = N``; None without patches, or for windows.
    """

    prefix: Tensor
    patches: Tensor
    grid: Grid | None


class RelationHead(TokenHead):
    """Base of heads that compare how tokens relate to each other, as they are.

    Nothing is projected: relations depend on no width. Patches of unequal grids are brought to the
    teacher's by resizing the student's. Losses are means over the pairs.
    """

    #: Whether the student's patches are resized where grids differ.
    _resizes = True

    @abstractmethod
    def pair_terms(self, own: Places, other: Places) -> dict[str, Tensor]:
        """The losses of one pair by their keys, weighted."""

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """The sum of the terms of one pair."""
        return sum(self.pair_terms(*self.places(index, student, teacher)).values())

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """The mean over the pairs, term by term."""
        if self.widths is None:
            raise RuntimeError(
                f'{type(self).__name__}: build_aligners has to be called before the first forward.'
            )
        pairs = [
            self.pair_terms(*self.places(index, student, teacher))
            for index in range(len(self.widths[0]))
        ]
        return {key: sum(terms[key] for terms in pairs) / len(pairs) for key in pairs[0]}

    def places(
        self, index: int, student: Observation, teacher: Observation
    ) -> tuple[Places, Places]:
        """Tokens of one pair; the student's patches on the teacher's grid where the head wants."""
        own, other = (
            _parted(*self.tokens(observation, side, index))
            for side, observation in enumerate((student, teacher))
        )
        if self._resizes and own.grid and other.grid and own.grid != other.grid:
            maps = own.patches.transpose(1, 2).unflatten(2, own.grid)
            patches = resize(maps, other.grid).flatten(2).transpose(1, 2)
            own = own._replace(patches=patches, grid=other.grid)
        return own, other

    def need_patches(self, *pair: Places) -> None:
        """Insist on patches.

        Raises:
            ValueError: If a network gives a vector.
        """
        for network, found in zip(_SIDES, pair, strict=True):
            if not found.patches.shape[1]:
                raise ValueError(
                    f'{type(self).__name__} compares patches, but the {network} gives a vector: '
                    'tap blocks, such as backbone.layers.3.'
                )


def _parted(tokens: Tensor, grid: Grid | None) -> Places:
    count = 0 if grid is None else grid[0] * grid[1]
    first = tokens.shape[1] - count
    return Places(tokens[:, :first], tokens[:, first:], grid)
