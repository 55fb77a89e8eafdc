"""Least squares on sums: refits of linear layers and the choice of their inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Refit:
    """Correct a linear layer by ridge least squares, drawn towards the weights it has.

    Solves ``min_V |T - (X V^T + c)|^2 + ridge |V - W|^2``. Only sums over the rows are kept. Some
    rows are held out to choose the ridge; if no ridge beats the present weights there, these stay.
    A layer that already gives the targets is left as it is, to rounding.

    Args:
        weight (Tensor): Present weights ``W``, ``[out, in]``.
        bias (Tensor, optional): Present bias ``[out]``.
        fit_bias (bool): Whether the bias may change. Defaults to whether there is one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, fit_bias: bool | None = None) -> None:
        self.weight = weight.double()
        self.bias = None if bias is None else bias.double()
        self.fit_bias = bias is not None if fit_bias is None else fit_bias
        n = weight.shape[1] + int(self.fit_bias)
        # Index 0: rows to fit; 1: rows held out.
        self.gram = weight.new_zeros(2, n, n, dtype=torch.float64)
        self.cross = weight.new_zeros(2, n, weight.shape[0], dtype=torch.float64)
        self.rows = [0, 0]

    def add(self, inputs: Tensor, targets: Tensor, held_out: bool = False) -> None:
        """Add rows: inputs ``[N, in]`` and targets ``[N, out]``."""
        x = inputs.double()
        error = targets.double() - x @ self.weight.t()
        if self.bias is not None:
            error = error - self.bias
        if self.fit_bias:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        part = int(held_out)
        self.gram[part] += x.t() @ x
        self.cross[part] += x.t() @ error
        self.rows[part] += len(x)

    def _solve(self, gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
        n = self.weight.shape[1]
        level = gram.diagonal()[:n].mean().clamp_min(1e-300)
        penalty = torch.full_like(gram.diagonal(), ridge * float(level))
        if self.fit_bias:
            # The bias is hardly held: a shift is no sign of overfitting.
            penalty[n:] = 1e-6 * gram[n, n]
        factor, failed = torch.linalg.cholesky_ex(gram + penalty.diag())
        if failed:
            return torch.zeros_like(cross)
        return torch.cholesky_solve(cross, factor)

    def solve(self) -> tuple[Tensor, Tensor | None]:
        """The corrected weights ``[out, in]`` and bias, float64."""
        if not self.rows[0]:
            return self.weight, self.bias
        ridge, best = (None, 0.0) if self.rows[1] else (1e-2, -1.0)
        if self.rows[1]:
            for candidate in RIDGES:
                step = self._solve(self.gram[0], self.cross[0], candidate)
                gain = float(
                    (step * (self.gram[1] @ step)).sum() - 2 * (step * self.cross[1]).sum()
                )
                if gain < best:
                    ridge, best = candidate, gain
        if ridge is None:
            return self.weight, self.bias
        step = self._solve(self.gram.sum(0), self.cross.sum(0), ridge)
        n = self.weight.shape[1]
        weight = self.weight + step[:n].t()
        return weight, self.bias + step[n] if self.fit_bias else self.bias


class Moments:
    """Mean and covariance of rows ``[N, C]``, summed in float64."""

    def __init__(self, channels: int, device: torch.device | str = 'cpu') -> None:
        self.sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self.square = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        """Add rows ``[..., C]``."""
        x = rows.reshape(-1, rows.shape[-1]).double()
        self.sum += x.sum(0)
        self.square += x.t() @ x
        self.rows += len(x)

    @property
    def mean(self) -> Tensor:
        """``[C]``."""
        return self.sum / max(self.rows, 1)

    @property
    def covariance(self) -> Tensor:
        """``[C, C]``."""
        return self.square / max(self.rows, 1) - torch.outer(self.mean, self.mean)


def keep_inputs(
    moments: Moments, weight: Tensor, kept: int, group: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the inputs of a linear layer that reconstruct its output best.

    The cheapest is dropped, one by one.

    The cost of dropping group ``S`` with all others refitted is ``tr(W_S [G^-1]_SS^-1 W_S^T)``
    (optimal brain surgeon, Hassibi and Stork, 1993, for groups), ``G`` the inputs' covariance: the
    means go into the bias.

    Args:
        moments (Moments): Of the inputs.
        weight (Tensor): ``[out, in]``.
        kept (int): Groups to keep.
        group (int): Neighbouring inputs that stay or go together (a head). Defaults to 1.

    Returns:
        tuple: Indices of the kept groups, ascending; and the best reconstruction of all inputs from
        the kept ones, a matrix ``[in, kept * group]`` and an offset ``[in]``.
    """
    weight = weight.double()
    total = weight.shape[1] // group
    lane = torch.arange(group, device=weight.device)
    alive = torch.arange(total, device=weight.device)
    eye = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
    if kept >= total:
        return alive, eye, torch.zeros_like(weight[0])
    gram = moments.covariance
    gram = gram + 1e-4 * gram.diagonal().mean().clamp_min(1e-300) * eye
    inverse = torch.linalg.inv(gram)
    rest = weight.clone()
    # Large layers lose several units between two rankings; the order hardly changes in between.
    burst = max(1, (total - kept) // 512)
    while len(alive) > kept:
        blocks = alive[:, None] * group + lane
        if group == 1:
            cost = rest[:, alive].square().sum(0) / inverse.diagonal()[alive]
        else:
            own = inverse[blocks[:, :, None], blocks[:, None, :]]
            part = rest[:, blocks].permute(1, 2, 0)
            cost = (part * torch.linalg.solve(own, part)).sum((1, 2))
        worst = cost.argsort()[: min(burst, len(alive) - kept)]
        for index in blocks[worst]:
            gain = torch.linalg.solve(inverse[index[:, None], index], inverse[index])
            rest -= rest[:, index] @ gain
            inverse -= inverse[:, index] @ gain
        mask = torch.ones(len(alive), dtype=torch.bool, device=weight.device)
        mask[worst] = False
        alive = alive[mask]
    return alive, *reconstruct(moments, (alive[:, None] * group + lane).flatten())


def reconstruct(moments: Moments, columns: Tensor) -> tuple[Tensor, Tensor]:
    """All inputs from some: ``x ~ read x[columns] + offset`` by least squares.

    Returns:
        tuple: ``read`` ``[C, k]``, whose rows for kept inputs are those of the identity, and
            ``offset`` ``[C]``.
    """
    gram = moments.covariance
    own = gram[columns[:, None], columns]
    own = own + 1e-4 * own.diagonal().mean().clamp_min(1e-300) * torch.eye(
        len(own), dtype=own.dtype, device=own.device
    )
    read = torch.linalg.solve(own, gram[columns]).t().contiguous()
    read[columns] = torch.eye(len(columns), dtype=read.dtype, device=read.device)
    offset = moments.mean - read @ moments.mean[columns]
    offset[columns] = 0
    return read, offset


def keep_evenly(
    total: int, kept: int, group: int = 1, device: torch.device | str = 'cpu'
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`keep_inputs`, but evenly spread, and dropped inputs count as zero."""
    groups = torch.linspace(0, total - 1, kept, dtype=torch.float64, device=device).round().long()
    columns = (groups[:, None] * group + torch.arange(group, device=device)).flatten()
    eye = torch.eye(total * group, dtype=torch.float64, device=device)
    return groups, eye[:, columns], torch.zeros_like(eye[0])


def keep_strongest(
    moments: Moments, weight: Tensor, kept: int, group: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`keep_inputs`, but each input by itself, and dropped ones count as their mean.

    The score of a group is the variance of what the layer makes of it alone: squared weights times
    squared activations, the mean of these left out, since it goes to the bias.
    """
    total = len(moments.sum) // group
    lane = torch.arange(total * group, device=weight.device).view(total, group)
    blocks = moments.covariance[lane[:, :, None], lane[:, None, :]]
    parts = weight[:, lane].permute(1, 0, 2)
    scores = torch.einsum('gof,gfe,goe->g', parts, blocks, parts)
    groups = strongest_index(scores, kept)
    columns = lane[groups].flatten()
    eye = torch.eye(total * group, dtype=torch.float64, device=weight.device)
    offset = moments.mean.clone()
    offset[columns] = 0
    return groups, eye[:, columns], offset


def strongest_index(scores: Tensor, kept: int) -> Tensor:
    """The ``kept`` indices of the largest scores ``[N]``, ascending; the first of equals."""
    return scores.argsort(descending=True, stable=True)[:kept].sort().values


def keep_units(
    how: str, moments: Moments, weight: Tensor, kept: int, group: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the inputs of a linear layer by one of :attr:`Recipe.units`; see those functions."""
    if how == 'uniform':
        return keep_evenly(weight.shape[1] // group, kept, group, weight.device)
    keep = dict(activation=keep_strongest, reconstruction=keep_inputs)[how]
    return keep(moments, weight, kept, group)


def channel_fit(
    inputs: Sequence[Tensor], targets: Sequence[Tensor], weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Refit an elementwise affine, channel by channel, over rows ``[N, C]``.

    Returns:
        tuple: Weight and bias ``[C]``, float64; the present ones if they already give the targets.
    """
    weight, bias = weight.double(), bias.double()
    n = sum(len(x) for x in inputs)
    x = torch.cat([i.double() for i in inputs])
    error = torch.cat([t.double() for t in targets]) - (x * weight + bias)
    centred = x - x.mean(0)
    slope = (centred * error).sum(0) / (
        centred.square().sum(0) + 1e-3 * n * centred.square().mean().clamp_min(1e-300)
    )
    return weight + slope, bias + error.mean(0) - slope * x.mean(0)
