"""A narrower SimpleFPN made from its teacher."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdfkd.models.necks import SimpleFPN

from .layers import MAX_ROWS, LayerView, apply_channels, channels_last
from .least_squares import Moments, Refit, channel_fit, keep_units, strongest_index
from .recipe import Recipe
from .streams import IdentityMap, NormStatistics, StreamMap, uniform_index, zero_sum_basis
from .transformer import assign, held_out, stream_map

#: Layers with more inputs are copied, not refitted.
MAX_FEATURES = 3200


def refit_layer(
    layer: nn.Module, pairs: Iterable[tuple[Tensor, Tensor, bool]], per_pair: int
) -> None:
    """Refit a layer on its own inputs.

    Args:
        layer (nn.Module): Convolution, transposed convolution or linear layer with its present
            weights.
        pairs (Iterable): Inputs, the outputs it should have, and whether they are held out.
        per_pair (int): Rows to take of each pair at most.
    """
    view = LayerView(layer)
    matrix = view.matrix()
    if matrix.shape[1] > MAX_FEATURES:
        return
    # All positions of a transposed convolution share one bias: it stays.
    fit = Refit(matrix, view.bias, fit_bias=layer.bias is not None and not view.spreads)
    for inputs, targets, held in pairs:
        fit.add(*view.rows(inputs, targets, per_pair), held)
    weight, bias = fit.solve()
    view.assign(weight, None if view.spreads else bias)


def norm_as(norm: nn.LayerNorm, maps: Tensor) -> Tensor:
    """A LayerNorm's output before its affine, ``[B, C, H, W]``."""
    x = channels_last(maps)
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=norm.eps).movedim(-1, 1)


def fit_norm(norm: nn.LayerNorm, pairs: Iterable[tuple[Tensor, Tensor]], per_pair: int) -> None:
    """Refit a LayerNorm's affine, channel by channel; pairs are its input and wanted output."""
    inputs, targets = [], []
    for maps, wanted in pairs:
        x = channels_last(norm_as(norm, maps)).flatten(0, -2)
        y = channels_last(wanted).flatten(0, -2)
        step = -(-len(x) // per_pair)
        inputs.append(x[::step])
        targets.append(y[::step])
    weight, bias = channel_fit(inputs, targets, norm.weight, norm.bias)
    assign(norm.weight, weight)
    assign(norm.bias, bias)


@dataclass
class PyramidMap:
    """The map of the pyramid's channels, shared by all levels as their readers are.

    Attributes:
        read: ``[n, n']``; the teacher's pyramid is ``read`` times the student's, as far as
            possible. Readers are multiplied by it from the right.
        before: Per level ``[n', n]``: from the input of the teacher's last norm to the student's.
        affine: Per level, weight and bias of the student's last norm.
        after: ``[n', n]``, from the teacher's pyramid to what the student's should be.
        energy: Share of the pyramid's energy that is kept.
    """

    read: Tensor
    before: list[Tensor]
    affine: list[tuple[Tensor, Tensor]]
    after: Tensor
    energy: float = 1.0


def pyramid_map(
    norms: Sequence[nn.LayerNorm], maps: Sequence[Sequence[Tensor]], narrow: int, recipe: Recipe
) -> PyramidMap:
    """Choose the student's pyramid channels.

    A level is ``g * v + b`` with ``v`` normalised. The varying part ``t = g * v`` of all levels is
    rotated to its leading ``n' - 1`` directions ``R``; the free ones direction of the student's
    last LayerNorm carries what of the biases lies outside them.

    Args:
        norms (Sequence): The teacher's last norm of each level.
        maps (Sequence): Its inputs per level, per batch ``[B, n, H, W]``.
        narrow (int): Channels ``n'`` of the student.
        recipe (Recipe): How channels are chosen.
    """
    wide, device = len(norms[0].weight), norms[0].weight.device
    eye = torch.eye(wide, dtype=torch.float64, device=device)
    affine = [(n.weight.double(), n.bias.double()) for n in norms]
    if narrow == wide:
        return PyramidMap(eye, [eye] * len(norms), affine, eye)
    moments = torch.zeros_like(eye)
    energies = []
    for norm, level in zip(norms, maps, strict=True):
        own = torch.zeros_like(eye)
        count = 0
        for batch in level:
            t = channels_last(norm_as(norm, batch)).flatten(0, -2).double() * norm.weight.double()
            own += t.t() @ t
            count += len(t)
        energies.append(own / count)
        moments += own / count
    if recipe.method == 'select':
        index = _select(recipe, moments.diagonal(), narrow)
        keep = eye[index]
        share = moments.diagonal()[index].sum() / moments.trace()
        return PyramidMap(
            keep.t(),
            [keep] * len(norms),
            [(w[index], b[index]) for w, b in affine],
            keep,
            float(share),
        )
    values, vectors = torch.linalg.eigh(moments)
    r = vectors[:, 1 - narrow :].flip(-1)
    biases = torch.stack([b for _, b in affine], 1)
    outside = torch.linalg.svd(biases - r @ (r.t() @ biases)).U[:, 0]
    if not biases.any():
        outside = vectors[:, -narrow]
    z = zero_sum_basis(narrow, device)
    ones = torch.full((narrow, 1), narrow**-0.5, dtype=torch.float64, device=device)
    after = z @ r.t() + ones @ outside[None]
    before, own_affine = [], []
    centre = eye - 1 / wide
    for (weight, bias), energy in zip(affine, energies, strict=True):
        level = ((r.t() @ energy @ r).trace() / narrow).sqrt().clamp_min(1e-12)
        before.append(z @ r.t() @ (weight[:, None] * centre) / level)
        own_affine.append((level.expand(narrow), after @ bias))
    return PyramidMap(
        after.t(), before, own_affine, after, float(values[1 - narrow :].sum() / values.sum())
    )


def _select(recipe: Recipe, importance: Tensor, kept: int) -> Tensor:
    """Channels that ``'select'`` keeps, ascending."""
    if recipe.channels == 'uniform':
        return uniform_index(len(importance), kept, importance.device)
    return strongest_index(importance, kept)


def linear_bottleneck(second_moment: Tensor, reader: Tensor, narrow: int, recipe: Recipe) -> Tensor:
    """Directions of channels that one linear layer writes and one linear layer reads.

    First what the reader makes most of, then the strongest of the rest.

    Args:
        second_moment (Tensor): Of the channels ``[C, C]``.
        reader (Tensor): Weights of the reading layer ``[out, C]``.
        narrow (int): Directions to keep.
        recipe (Recipe): How channels are chosen.

    Returns:
        Tensor: ``[narrow, C]``, orthonormal rows.
    """
    wide = len(second_moment)
    eye = torch.eye(wide, dtype=torch.float64, device=second_moment.device)
    if narrow == wide:
        return eye
    if recipe.method == 'select':
        importance = second_moment.diagonal() * reader.square().sum(0)
        return eye[_select(recipe, importance, narrow)]
    _, vectors = torch.linalg.eigh(reader @ second_moment @ reader.t())
    used = min(narrow, len(reader))
    first = torch.linalg.qr((vectors[:, -used:].t() @ reader).t()).Q.t()
    rest = eye - first.t() @ first
    _, vectors = torch.linalg.eigh(rest @ second_moment @ rest)
    return torch.cat([first, vectors[:, used - narrow :].t()])[:narrow] if narrow > used else first


class _LevelHeir:
    """Makes one level of the student's pyramid."""

    def __init__(
        self, teacher: SimpleFPN, student: SimpleFPN, level: int, stream: StreamMap, recipe: Recipe
    ) -> None:
        self.tp, self.sp = getattr(teacher, f'fpn{level + 1}'), getattr(student, f'fpn{level + 1}')
        self.tl, self.sl = teacher.lateral_convs[level], student.lateral_convs[level]
        self.tf, self.sf = teacher.fpn_convs[level], student.fpn_convs[level]
        self.stream, self.recipe = stream, recipe

    def run(
        self, x: Sequence[Tensor], y: Sequence[Tensor], goal: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Write the level.

        Args:
            x (Sequence[Tensor]): Maps of the teacher's backbone per batch.
            y (Sequence[Tensor]): Of the student's.
            goal (tuple): Map before the last norm ``[n', n]``, and that norm's affine.
        """
        self.per_pair = max(1, MAX_ROWS // len(x))
        z = [self.tp(b) for b in x]
        u = [self.tl.conv(b) for b in z]
        statistics = NormStatistics(u[0].shape[1], u[0].device)
        for b in u:
            statistics.add(channels_last(b))
        lateral, _ = stream_map(
            self.recipe, u[0].shape[1], self.sl.conv.out_channels, statistics, u[0].device
        )
        read = self._rescale(x, y, z, lateral)
        own = [self.sp(b) for b in y]
        LayerView(self.sl.conv).assign(*LayerView(self.tl.conv).derive(read, write=lateral.write))
        self._correct(self.sl.conv, own, [apply_channels(lateral.write, b) for b in u])
        readers, weight, bias = lateral.through_norm(self.tl.norm.weight, self.tl.norm.bias)
        assign(self.sl.norm.weight, weight)
        assign(self.sl.norm.bias, bias)

        before, weight, bias = goal
        LayerView(self.sf.conv).assign(*LayerView(self.tf.conv).derive(readers, write=before))
        own = [self.sl(b) for b in own]
        v = [self.tf.conv(self.tl.norm(b)) for b in u]
        self._correct(self.sf.conv, own, [apply_channels(before, b) for b in v])
        assign(self.sf.norm.weight, weight)
        assign(self.sf.norm.bias, bias)

    def _correct(
        self, layer: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> None:
        if self.recipe.refits:
            pairs = (
                (a, b, held_out(i)) for i, (a, b) in enumerate(zip(inputs, targets, strict=True))
            )
            refit_layer(layer, pairs, self.per_pair)

    def _rescale(
        self, x: Sequence[Tensor], y: Sequence[Tensor], z: Sequence[Tensor], lateral: StreamMap
    ) -> Tensor:
        """Write the layers before the lateral convolution; return the map that reads them."""
        read = self.stream.read
        if len(self.tp) == 4:
            read, x, y = self._expand(x, y)
            last, own = self.tp[3], self.sp[3]
        elif isinstance(self.tp[0], nn.ConvTranspose2d):
            last, own = self.tp[0], self.sp[0]
        else:
            # Identity, or a maximum, which no rotation passes exactly: the lateral refit
            # makes up for it.
            return read
        moments = Moments(z[0].shape[1], z[0].device)
        for b in z:
            moments.add(channels_last(b))
        reader = lateral.write @ LayerView(self.tl.conv).matrix()
        keep = linear_bottleneck(
            moments.square / moments.rows, reader, own.out_channels, self.recipe
        )
        offset = self._offset if len(self.tp) == 4 else None
        LayerView(own).assign(*LayerView(last).derive(read, write=keep, offset=offset))
        self._correct(own, y, [apply_channels(keep, b) for b in z])
        return keep.t()

    def _expand(
        self, x: Sequence[Tensor], y: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The first of two transposed convolutions, norm and activation: channels are chosen."""
        first, norm, act = self.tp[0], self.tp[1], self.tp[2]
        own, own_norm = self.sp[0], self.sp[1]
        raw = [first(b) for b in x]
        hidden = [act(norm(b)) for b in raw]
        kept = own.out_channels
        moments = Moments(first.out_channels, hidden[0].device)
        for b in hidden:
            moments.add(channels_last(b))
        reader = LayerView(self.tp[3]).matrix()
        units, read, self._offset = keep_units(self.recipe.units, moments, reader, kept)
        LayerView(own).assign(*LayerView(first).derive(self.stream.read, rows=units))
        self._correct(own, y, [b[:, units] for b in raw])
        assign(own_norm.weight, norm.weight[units])
        assign(own_norm.bias, norm.bias[units])
        if self.recipe.refits and kept < first.out_channels:
            fit_norm(
                own_norm,
                ((own(a), norm(b)[:, units]) for a, b in zip(y, raw, strict=True)),
                self.per_pair,
            )
        return read, hidden, [self.sp[2](own_norm(own(b))) for b in y]


def check_pyramids(teacher: SimpleFPN, student: SimpleFPN) -> None:
    """Raise ValueError where a pyramid cannot inherit from this one."""
    if teacher.scale_factors != student.scale_factors or teacher.num_outs != student.num_outs:
        raise ValueError(
            f"The student's SimpleFPN has the scale factors {student.scale_factors} and "
            f"{student.num_outs} levels, the teacher's "
            f'{teacher.scale_factors} and {teacher.num_outs}: they must be equal.'
        )
    wide, narrow = teacher.fpn_convs[0].conv.out_channels, student.fpn_convs[0].conv.out_channels
    if narrow > wide:
        raise ValueError(
            f"The student's pyramid has {narrow} channels, more than the teacher's {wide}."
        )
    inner = [neck.lateral_convs[0].conv.out_channels for neck in (teacher, student)]
    if inner[1] > inner[0]:
        raise ValueError(
            f"The student's SimpleFPN has lateral_channels={inner[1]}, the teacher's {inner[0]}: "
            'no more than those are inherited.'
        )


def inherit_pyramid(
    teacher: SimpleFPN,
    student: SimpleFPN,
    stream: StreamMap,
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    recipe: Recipe,
) -> PyramidMap:
    """Write a student's SimpleFPN.

    Args:
        teacher (SimpleFPN): The teacher's pyramid.
        student (SimpleFPN): The student's, of the same levels.
        stream (StreamMap): Map of the backbone's channels.
        x (Sequence[Tensor]): Last maps of the teacher's backbone per batch ``[B, D, H, W]``.
        y (Sequence[Tensor]): Of the student's, ``[B, d, H, W]``.
        recipe (Recipe): How channels are chosen, and whether layers are refitted.

    Returns:
        PyramidMap: How the student's pyramid is to be read.

    Raises:
        ValueError: As :func:`check_pyramids`.
    """
    check_pyramids(teacher, student)
    wide, narrow = (neck.fpn_convs[0].conv.out_channels for neck in (teacher, student))
    levels = range(len(teacher.scale_factors))
    last = [
        [
            teacher.fpn_convs[i].conv(teacher.lateral_convs[i](getattr(teacher, f'fpn{i + 1}')(b)))
            for b in x
        ]
        for i in levels
    ]
    maps = pyramid_map([c.norm for c in teacher.fpn_convs], last, narrow, recipe)
    del last
    for i in levels:
        heir = _LevelHeir(teacher, student, i, stream, recipe)
        heir.run(x, y, (maps.before[i], *maps.affine[i]))
    if recipe.refits and (not isinstance(stream, IdentityMap) or narrow < wide):
        _finish(teacher, student, maps, x, y)
    return maps


def _finish(teacher, student, maps: PyramidMap, x, y) -> None:
    """Refit the last norms to the pyramid they should give, and the map that reads it."""
    wide, narrow = maps.read.shape
    per_pair = max(1, MAX_ROWS // len(x) // len(teacher.fpn_convs))
    goals = [teacher(b) for b in x]
    for i, own in enumerate(student.fpn_convs):
        pairs = []
        for b, goal in zip(y, goals, strict=True):
            inner = own.conv(student.lateral_convs[i](getattr(student, f'fpn{i + 1}')(b)))
            pairs.append((inner, apply_channels(maps.after, goal[i])))
        fit_norm(own.norm, pairs, per_pair)
    if narrow == wide:
        return
    fit = Refit(maps.read, None)
    for index, (b, goal) in enumerate(zip(y, goals, strict=True)):
        for ours, theirs in zip(student(b), goal, strict=True):
            a = channels_last(ours).flatten(0, -2)
            t = channels_last(theirs).flatten(0, -2)
            step = -(-len(a) // per_pair)
            fit.add(a[::step], t[::step], held_out(index))
    maps.read, _ = fit.solve()
