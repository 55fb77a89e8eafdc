"""A narrower, shallower plain ViT made from its teacher."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .depth import choose_layers, uniform_layers
from .least_squares import Moments, Refit, keep_evenly, keep_inputs
from .streams import (
    IdentityMap,
    NormStatistics,
    RotationMap,
    SelectionMap,
    StreamMap,
    uniform_index,
)
from .views import BlockView, VitView

#: Tokens that the refits look at; more change nothing but the time.
MAX_TOKENS = 65536


@dataclass
class Plan:
    """What was kept of a backbone, and both networks' tokens behind the last block.

    Attributes:
        stream: The map of the token channels.
        layers: The teacher's block for each of the student's.
        heads: Kept heads of each kept block.
        energy: Share of the normalised stream's energy in the kept directions.
        teacher_tokens, student_tokens: Per batch ``[B, ..., D]`` and ``[B, ..., d]``.
    """

    stream: StreamMap
    layers: list[int]
    heads: list[list[int]]
    energy: float
    teacher_tokens: list[Tensor] = field(default_factory=list, repr=False)
    student_tokens: list[Tensor] = field(default_factory=list, repr=False)


def held_out(index: int) -> bool:
    """Whether batch ``index`` is kept from the fits to choose their ridge."""
    return index % 4 == 3


def assign(parameter: Tensor, value: Tensor) -> None:
    """Write ``value`` into a parameter, in place."""
    if parameter.shape != value.shape:
        raise RuntimeError(
            f'Inheritance made a weight of {tuple(value.shape)} for one of '
            f'{tuple(parameter.shape)}.'
        )
    parameter.detach().copy_(value)


def assign_layer(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Write weight and bias of a layer; a layer without a bias drops it."""
    assign(layer.weight, weight.reshape(layer.weight.shape))
    if layer.bias is not None and bias is not None:
        assign(layer.bias, bias)


def require_same_shape(name: str, teacher: Tensor, student: Tensor) -> None:
    """Raise where only the last dimension, the channels, may differ."""
    if teacher.shape[:-1] != student.shape[:-1]:
        raise ValueError(
            f"Inheritance needs the teacher's {name}: it has {tuple(teacher.shape)}, the student "
            f'{tuple(student.shape)}. '
            'Give both the same image size, patch size and window size.'
        )


def check_backbones(teacher: VitView, student: VitView) -> None:
    """Raise ValueError where a student cannot inherit from this teacher."""
    a, b = teacher.patch_conv(), student.patch_conv()
    if a.kernel_size != b.kernel_size or a.stride != b.stride:
        raise ValueError(
            f"The student's patches are {b.kernel_size} px, the teacher's {a.kernel_size}: they "
            'must be equal.'
        )
    if teacher.head_dims != student.head_dims:
        raise ValueError(
            f"The student's attention heads are {student.head_dims} channels wide, the teacher's "
            f'{teacher.head_dims}: whole '
            "heads are inherited, so the width must be equal. Change num_heads (or ViTDet's "
            'arch.head_dims).'
        )
    sizes = dict(
        embed_dims=(teacher.dims, student.dims),
        num_layers=(len(teacher.blocks), len(student.blocks)),
        num_heads=(teacher.num_heads, student.num_heads),
        feedforward_channels=(len(teacher.blocks[0].fc1.weight), len(student.blocks[0].fc1.weight)),
    )
    for name, (wide, narrow) in sizes.items():
        if narrow > wide:
            raise ValueError(
                f"The student's {name} is {narrow}, more than the teacher's {wide}: a student "
                'can inherit from a wider or '
                'equal teacher only.'
            )
    tables = student.token_parameters()
    for name, table in teacher.token_parameters().items():
        if name not in tables:
            raise ValueError(
                f"The teacher has a '{name}', the student has none: give both the same kind of "
                'backbone.'
            )
        require_same_shape(name, table, tables[name])


class _BlockHeir:
    """Makes one block of the student.

    Args:
        teacher, student: The two blocks.
        stream (StreamMap): Map of the token channels.
        head_dims (int): Width of a head.
        refit (bool): Choose heads and units, and refit; otherwise select evenly and copy.
    """

    def __init__(
        self, teacher: BlockView, student: BlockView, stream: StreamMap, head_dims: int, refit: bool
    ) -> None:
        self.teacher, self.student, self.stream = teacher, student, stream
        self.head_dims, self.refit = head_dims, refit

    def _norm(self, norm: nn.LayerNorm, own: nn.LayerNorm) -> Tensor:
        readers, weight, bias = self.stream.through_norm(norm.weight, norm.bias)
        assign(own.weight, weight)
        assign(own.bias, bias)
        return readers

    def _inputs(
        self, moments: Moments, site: int, kept: int, group: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of ``proj`` or ``fc2`` to keep, and what reads them, in the student's stream."""
        layer = (self.teacher.proj, self.teacher.fc2)[site]
        weight, bias = self.teacher.scaled(layer, site)
        weight, bias = self.stream.write @ weight, self.stream.write @ bias
        if self.refit:
            groups, read, offset = keep_inputs(moments, weight, kept, group)
        else:
            groups, read, offset = keep_evenly(weight.shape[1] // group, kept, group, weight.device)
        return groups, weight @ read, bias + weight @ offset

    def attention(self, moments: Moments, num_heads: int) -> tuple[Tensor, Tensor]:
        """Write norm1, qkv and proj; return the kept heads and the teacher's rows of ``qkv``."""
        groups, weight, bias = self._inputs(moments, 0, num_heads, self.head_dims)
        assign_layer(self.student.proj, weight, bias)
        if self.student.scales[0] is not None:
            assign(self.student.scales[0], torch.ones_like(self.student.scales[0]))
        readers = self._norm(self.teacher.norm1, self.student.norm1)
        lane = (
            groups[:, None] * self.head_dims + torch.arange(self.head_dims, device=groups.device)
        ).flatten()
        inner = len(self.teacher.qkv.weight) // 3
        rows = torch.cat([lane + i * inner for i in range(3)])
        qkv = self.teacher.qkv
        assign_layer(
            self.student.qkv,
            qkv.weight.double()[rows] @ readers,
            None if qkv.bias is None else qkv.bias[rows],
        )
        return groups, rows

    def mlp(self, moments: Moments) -> Tensor:
        """Write norm2, fc1 and fc2; return the kept units."""
        kept = len(self.student.fc1.weight)
        units, weight, bias = self._inputs(moments, 1, kept, 1)
        assign_layer(self.student.fc2, weight, bias)
        if self.student.scales[1] is not None:
            assign(self.student.scales[1], torch.ones_like(self.student.scales[1]))
        readers = self._norm(self.teacher.norm2, self.student.norm2)
        fc1 = self.teacher.fc1
        assign_layer(
            self.student.fc1,
            fc1.weight.double()[units] @ readers,
            None if fc1.bias is None else fc1.bias[units],
        )
        return units

    def correct(self, layer: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Refit a layer on its own inputs, given per batch with the outputs it should have."""
        fit = Refit(layer.weight.flatten(1), layer.bias)
        for i, (inputs, targets) in enumerate(pairs):
            fit.add(inputs.flatten(0, -2), targets.flatten(0, -2), held_out(i))
        assign_layer(layer, *fit.solve())


def stream_map(
    method: str, wide: int, narrow: int, statistics: NormStatistics | None, device: torch.device
) -> tuple[StreamMap, float]:
    """The map of a stream by either method, and the share of energy it keeps."""
    if narrow == wide:
        return IdentityMap(wide, device), 1.0
    if method == 'select':
        index = uniform_index(wide, narrow, device)
        diagonal = statistics.covariance.diagonal()
        return SelectionMap(index, wide), float(
            diagonal[index].sum() / diagonal.sum().clamp_min(1e-300)
        )
    directions, energy = statistics.directions(narrow - 1)
    return RotationMap(directions), energy


def stream_statistics(view: VitView, batches: Sequence[Tensor]) -> NormStatistics:
    """What the LayerNorms of all blocks, and what follows the last, see of the given tokens."""
    statistics = NormStatistics(view.dims, batches[0].device)
    hooks = [
        norm.register_forward_pre_hook(lambda _m, inputs: statistics.add(inputs[0]))
        for block in view.blocks
        for norm in (block.norm1, block.norm2)
    ]
    try:
        for tokens in batches:
            for i in range(len(view.blocks)):
                tokens = view.forward_block(i, tokens)
            statistics.add(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return statistics


def inherit_backbone(
    teacher: VitView,
    student: VitView,
    inputs: tuple[Sequence[Tensor], Sequence[Tensor]],
    method: str,
    readout: Callable[[Tensor], Sequence[Tensor]],
    distance: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
    stream: StreamMap | None = None,
) -> Plan:
    """Write a student's backbone.

    Both networks run side by side, block by block, on the same images. Each linear layer of the
    student is made from the teacher's and then refitted on the student's own inputs: ``qkv`` and
    ``fc1`` towards the teacher's values before the nonlinearity, ``proj`` and ``fc2`` towards what
    the stream should be, so that errors do not add up and the last layer before a dropped block
    stands in for it.

    Args:
        teacher (VitView): The teacher's backbone, in evaluation mode.
        student (VitView): The student's.
        inputs (tuple): Normalised images per batch, for the statistics and for the refits.
        method (str): ``'slice'`` or ``'select'``.
        readout (Callable): From the teacher's last tokens to what the network makes of them; judges
            layers.
        distance (Callable): Between two readouts.
        stream (StreamMap, optional): Use this map instead of one chosen here.

    Returns:
        Plan: What was kept.
    """
    check_backbones(teacher, student)
    refit = method == 'slice'
    many, few = inputs
    statistics = stream_statistics(teacher, [teacher.embed(x) for x in many])
    energy = 1.0
    if stream is None:
        stream, energy = stream_map(method, teacher.dims, student.dims, statistics, many[0].device)
    layers = _layers(teacher, student, many, refit, readout, distance)

    conv, own = teacher.patch_conv(), student.patch_conv()
    weight = (stream.write @ conv.weight.double().flatten(1)).reshape(own.weight.shape)
    assign_layer(own, weight, None if conv.bias is None else stream.write @ conv.bias.double())
    tables = student.token_parameters()
    for name, table in teacher.token_parameters().items():
        assign(tables[name], table.double() @ stream.write.t())

    x = [teacher.embed(batch) for batch in few]
    y = [student.embed(batch) for batch in few]
    x = [_advance(teacher, range(layers[0]), tokens) for tokens in x]
    heads = []
    for slot, layer in enumerate(layers):
        end = layers[slot + 1] if slot + 1 < len(layers) else len(teacher.blocks)
        kept, x, y = _inherit_block(
            teacher, student, layer, slot, range(layer + 1, end), stream, refit, x, y
        )
        heads.append(kept)
    return Plan(stream, layers, heads, energy, x, y)


def _advance(view: VitView, blocks: Sequence[int], tokens: Tensor) -> Tensor:
    for index in blocks:
        tokens = view.forward_block(index, tokens)
    return tokens


def _layers(teacher, student, batches, refit, readout, distance) -> list[int]:
    if not refit:
        return uniform_layers(teacher.kinds, student.kinds)
    some, count = [], 0
    for batch in batches:
        some.append(teacher.embed(batch))
        count += len(batch)
        if count >= 64:
            break
    everything = range(len(teacher.blocks))
    full = [readout(_advance(teacher, everything, tokens)) for tokens in some]

    def change(kept: tuple[int, ...]) -> float:
        parts = [
            distance(readout(_advance(teacher, kept, t)), f)
            for t, f in zip(some, full, strict=True)
        ]
        return float(torch.stack(parts).mean())

    return choose_layers(teacher.kinds, student.kinds, change)


def _inherit_block(teacher, student, layer, slot, dropped, stream, refit, x, y):
    """Make block ``slot`` of the student from block ``layer`` of the teacher, and run both."""
    tb, sb = teacher.blocks[layer], student.blocks[slot]
    heir = _BlockHeir(tb, sb, stream, teacher.head_dims, refit)
    write = stream.write.to(x[0])

    moments = Moments(tb.proj.in_features, x[0].device)
    normed = [tb.norm1(tokens) for tokens in x]
    middle = []
    for tokens, n in zip(x, normed, strict=True):
        mixed = teacher.mix(layer, n)
        moments.add(mixed)
        middle.append(tokens + tb.write(mixed, 0))
    groups, rows = heir.attention(moments, student.num_heads)
    tables = student.head_tables(slot)
    for name, table in teacher.head_tables(layer).items():
        if name not in tables or tables[name].shape != table.shape:
            raise ValueError(
                f'Block {layer} of the teacher has a {name} of {tuple(table.shape)}, block '
                f'{slot} of the student '
                f'{tuple(tables[name].shape) if name in tables else "none"}: give both the same '
                'img_size, window_size and '
                'use_rel_pos.'
            )
        assign(tables[name], table)
    if refit:
        heir.correct(
            sb.qkv, ((sb.norm1(b), tb.qkv(n)[..., rows]) for b, n in zip(y, normed, strict=True))
        )
    del normed
    mixed = [student.mix(slot, sb.norm1(tokens)) for tokens in y]
    if refit:
        heir.correct(
            sb.proj, ((m, a @ write.t() - b) for m, a, b in zip(mixed, middle, y, strict=True))
        )
    y = [b + sb.write(m, 0) for b, m in zip(y, mixed, strict=True)]

    moments = Moments(tb.fc2.in_features, x[0].device)
    x = []
    for tokens in middle:
        hidden = tb.act(tb.fc1(tb.norm2(tokens)))
        moments.add(hidden)
        x.append(_advance(teacher, dropped, tokens + tb.write(hidden, 1)))
    units = heir.mlp(moments)
    if refit:
        heir.correct(
            sb.fc1,
            (
                (sb.norm2(b), tb.fc1(tb.norm2(a))[..., units])
                for a, b in zip(middle, y, strict=True)
            ),
        )
    hidden = [sb.act(sb.fc1(sb.norm2(tokens))) for tokens in y]
    if refit:
        heir.correct(sb.fc2, ((h, a @ write.t() - b) for h, a, b in zip(hidden, x, y, strict=True)))
    y = [b + sb.write(h, 1) for b, h in zip(y, hidden, strict=True)]
    return groups.tolist(), x, y
