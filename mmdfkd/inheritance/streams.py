"""How channels of the teacher become channels of the student.

A *stream* is a set of channels that layers write into and others read. A map between the teacher's
``D`` and the student's ``d`` channels says how each kind of layer is rewritten:

* what writes into the stream is multiplied from the left by ``write`` (``[d, D]``);
* what reads it directly is multiplied from the right by ``read`` (``[D, d]``);
* what reads it through a LayerNorm is multiplied from the right by the first result of
:meth:`StreamMap.through_norm`.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class StreamMap(ABC):
    """The map between ``D`` channels of the teacher and ``d`` of the student, in float64.

    Attributes:
        write: ``[d, D]``, from the teacher's channels to the student's.
        read: ``[D, d]``, back again as far as possible.
    """

    write: Tensor
    read: Tensor

    @abstractmethod
    def through_norm(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rewrite a LayerNorm of this stream and its readers.

        Args:
            weight (Tensor): The teacher's affine weight ``[D]``.
            bias (Tensor): The teacher's affine bias ``[D]``.

        Returns:
            tuple: ``E`` (``[D, d]``, by which readers are multiplied from the right), and the
            student's affine weight and bias, ``[d]`` each.
        """


class IdentityMap(StreamMap):
    """Nothing is cut: layers are copied."""

    def __init__(self, channels: int, device: torch.device | str = 'cpu') -> None:
        self.write = self.read = torch.eye(channels, dtype=torch.float64, device=device)

    def through_norm(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Copy the affine."""
        return self.read, weight.double(), bias.double()


class SelectionMap(StreamMap):
    """Keep some channels as they are.

    Args:
        index (Tensor): Channels to keep ``[d]``, ascending.
        channels (int): Channels ``D`` of the teacher.
        scale (float): Standard deviation over the kept channels in that over all: LayerNorms
            divide by the former, so their affine weight takes it. Defaults to 1.
    """

    def __init__(self, index: Tensor, channels: int, scale: float = 1.0) -> None:
        self.index, self.scale = index, scale
        self.write = torch.eye(channels, dtype=torch.float64, device=index.device)[index]
        self.read = self.write.t()

    def through_norm(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the affine of the kept channels."""
        return self.read, self.scale * weight.double()[self.index], bias.double()[self.index]


class RotationMap(StreamMap):
    """Keep leading directions of a stream that every reader normalises.

    ``y = B x`` with ``B = sqrt(d/D) (Z R^T + 1 1^T / sqrt(dD))``: ``R`` holds ``d - 1`` orthonormal
    directions without a mean, ``Z`` is an orthonormal basis of the zero-sum subspace of ``R^d``,
    and the ones direction carries the token's mean. The factor keeps the variance over the
    channels, so that the student's LayerNorm needs no other epsilon. Where ``x`` has no energy
    outside ``R`` and the ones direction, everything here is exact.

    A LayerNorm's output has no mean, so the ones direction of a reader's weight is free: it carries
    the teacher's affine bias, at a constant affine bias of the student. Unlike a bias folded into
    the reader, this stays right for readers without a bias and for zero padding between norm and
    reader (windows, convolutions).

    Args:
        directions (Tensor): ``R``, ``[D, d - 1]``, orthonormal columns that sum to zero.
    """

    def __init__(self, directions: Tensor) -> None:
        r = directions.double()
        wide, narrow = r.shape[0], r.shape[1] + 1
        self.turn = zero_sum_basis(narrow, r.device) @ r.t()
        scale = math.sqrt(narrow / wide)
        mean = torch.ones(narrow, wide, dtype=r.dtype, device=r.device) / math.sqrt(narrow * wide)
        isometry = self.turn + mean
        self.write = scale * isometry
        self.read = isometry.t() / scale

    def through_norm(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fold the affine into the readers; the student's is (1, a constant)."""
        narrow, wide = self.turn.shape
        weight, bias = weight.double(), bias.double()
        level = bias.square().mean().sqrt()
        readers = math.sqrt(wide / narrow) * weight[:, None] * self.turn.t()
        if level > 0:
            readers = readers + bias[:, None] / (narrow * level)
        ones = torch.ones(narrow, dtype=readers.dtype, device=readers.device)
        return readers, ones, level * ones


def zero_sum_basis(channels: int, device: torch.device | str = 'cpu') -> Tensor:
    """An orthonormal basis of the vectors that sum to zero: ``[channels, channels - 1]``.

    The columns of the orthonormal cosine transform without the constant one: every channel takes
    part in every direction, so that none is special.
    """
    position = torch.arange(channels, dtype=torch.float64, device=device) + 0.5
    order = torch.arange(1, channels, dtype=torch.float64, device=device)
    return torch.cos(math.pi / channels * position[:, None] * order) * math.sqrt(2 / channels)


class NormStatistics:
    """Second moments of what LayerNorms see: tokens without their mean, each of unit energy.

    Args:
        channels (int): Channels ``D``.
    """

    def __init__(self, channels: int, device: torch.device | str = 'cpu') -> None:
        self.covariance = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        # Of each reader: squared norm of its weights per channel, and the channels' energy there.
        self._sites: list[tuple[Tensor, Tensor]] = []

    def site(self, reader: Tensor) -> int:
        """Name a place whose tokens are to be told apart.

        Args:
            reader (Tensor): What reads them there ``[out, D]``, the norm's affine weight folded in.

        Returns:
            int: For :meth:`add`.
        """
        weights = reader.double().square().sum(0)
        self._sites.append((weights, torch.zeros_like(weights)))
        return len(self._sites) - 1

    def add(self, tokens: Tensor, site: int | None = None) -> None:
        """Add tokens ``[..., D]``."""
        x = tokens.reshape(-1, tokens.shape[-1]).double()
        x = x - x.mean(-1, keepdim=True)
        x = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        self.covariance += x.t() @ x
        if site is not None:
            self._sites[site][1].add_(x.square().sum(0))

    def importance(self) -> Tensor:
        """What the readers make of each channel ``[D]``: squared weights times energy.

        Summed over the sites in shares of each; where none was named, the energy alone.
        """
        if not self._sites:
            return self.covariance.diagonal().clone()
        shares = [weights * energy for weights, energy in self._sites]
        return torch.stack([s / s.sum().clamp_min(1e-300) for s in shares]).sum(0)

    def spread(self, index: Tensor) -> float:
        """Standard deviation over some channels in that over all, over the tokens."""
        part = self.covariance[index[:, None], index]
        kept = part.diagonal().mean() - part.mean()
        everything = self.covariance.diagonal().mean() - self.covariance.mean()
        return float((kept / everything.clamp_min(1e-300)).sqrt())

    def directions(self, count: int) -> tuple[Tensor, float]:
        """The leading zero-sum directions.

        Returns:
            tuple: ``R``, ``[D, count]``, and the share of the energy that they hold.
        """
        channels = len(self.covariance)
        basis = zero_sum_basis(channels, self.covariance.device)
        values, vectors = torch.linalg.eigh(basis.t() @ self.covariance @ basis)
        share = (
            values[-count:].sum() / values.sum().clamp_min(1e-300) if count else values.sum() * 0
        )
        return basis @ vectors[:, -count:].flip(-1) if count else basis[:, :0], float(share)


def uniform_index(total: int, kept: int, device: torch.device | str = 'cpu') -> Tensor:
    """``kept`` of ``total`` indices, evenly spread, ascending."""
    return torch.linspace(0, total - 1, kept, dtype=torch.float64, device=device).round().long()
