"""Weights that follow the iteration, and nothing else."""

from collections.abc import Mapping, Sequence
from math import cos, pi
from typing import NamedTuple

_SHAPES = ('linear', 'cosine')


def _between(a: float, b: float, share: float, shape: str) -> float:
    share = (1 - cos(pi * share)) / 2 if shape == 'cosine' else share
    return a + (b - a) * share


class Ramp(NamedTuple):
    """A factor that goes from ``start`` at ``begin`` to ``stop`` at iteration ``end``.

    With ``u`` the share of the way, it is ``start + (stop - start) u``, or with ``(1 - cos(pi u)) /
    2`` in the place of ``u`` where ``shape`` is ``'cosine'``.
    """

    begin: int
    end: int
    start: float = 0.0
    stop: float = 1.0
    shape: str = 'linear'

    def at(self, iteration: int) -> float:
        """The factor at an iteration; constant outside ``[begin, end]``."""
        if iteration >= self.end:
            return self.stop
        share = max(iteration - self.begin, 0) / (self.end - self.begin)
        return _between(self.start, self.stop, share, self.shape)


class Course(NamedTuple):
    """A factor through several points ``(iteration, factor)``, in pieces of one shape."""

    points: Sequence[tuple[int, float]]
    shape: str = 'linear'

    def at(self, iteration: int) -> float:
        """The factor at an iteration; constant before the first and after the last point."""
        points = [(-1, self.points[0][1]), *self.points]
        for (begin, start), (end, stop) in zip(points, points[1:], strict=False):
            if iteration < end:
                share = max(iteration - begin, 0) / (end - begin)
                return _between(start, stop, share, self.shape)
        return self.points[-1][1]


def read_schedule(config: Mapping, who: str) -> Ramp | Course:
    """Make a schedule of a config's mapping.

    Args:
        config (Mapping): Fields of :class:`Ramp`, or of :class:`Course` where it has ``points``.
        who (str): Whose it is, for messages.

    Raises:
        ValueError: If a key is unknown or lacks, or the iterations do not ascend.
    """
    keys = set(config)
    if 'points' in keys:
        if not keys <= set(Course._fields):
            raise ValueError(
                f'The schedule of {who} takes points and optionally shape, but has {sorted(keys)}.'
            )
        points = tuple((int(i), float(factor)) for i, factor in config['points'])
        found: Ramp | Course = Course(points, config.get('shape', 'linear'))
        if len(points) < 2 or any(a[0] >= b[0] for a, b in zip(points, points[1:], strict=False)):
            raise ValueError(
                f'The schedule of {who} needs two or more points (iteration, factor) in ascending '
                f'order of iterations, not {config["points"]}.'
            )
        if points[0][0] < 0:
            raise ValueError(f'The schedule of {who} begins at iteration {points[0][0]}.')
    else:
        if not {'begin', 'end'} <= keys <= set(Ramp._fields):
            raise ValueError(
                f'The schedule of {who} takes begin and end, and optionally start, stop and shape, '
                f'but has {sorted(keys)}.'
            )
        found = Ramp(**config)
        if found.end <= found.begin:
            raise ValueError(
                f'The schedule of {who} ends at iteration {found.end}, not after it begins '
                f'({found.begin}).'
            )
    if found.shape not in _SHAPES:
        raise ValueError(f'The schedule of {who} has the shape {found.shape!r}, not {_SHAPES}.')
    return found
