"""A narrower, shallower plain ViT made from its teacher."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .depth import choose_layers, uniform_layers
from .least_squares import Moments, Refit, keep_units, strongest_index
from .patches import resize_patch_embedding, whole_patches
from .recipe import Recipe
from .streams import (
    IdentityMap,
    NormStatistics,
    RotationMap,
    SelectionMap,
    StreamMap,
    uniform_index,
)
from .views import BlocksView, BlockView, VitView

#: Tokens that the refits look at; more change nothing but the time.
MAX_TOKENS = 65536

#: Patch embeddings of more values a patch are resampled, not refitted.
MAX_PIXELS = 3200


@dataclass
class Plan:
    """What was kept of a backbone, and both networks' tokens behind the last block.

    Attributes:
        stream: The map of the token channels.
        layers: The teacher's block for each of the student's.
        heads: Kept heads of each kept block.
        energy: Share of the normalised stream's energy in the kept directions.
        teacher_tokens, student_tokens: Per batch ``[B, ..., D]`` and ``[B, ..., d]``.
        stages: Of a backbone with stages: the map of each; that of the last is ``stream``.
    """

    stream: StreamMap
    layers: list[int]
    heads: list[list[int]]
    energy: float
    teacher_tokens: list[Tensor] = field(default_factory=list, repr=False)
    student_tokens: list[Tensor] = field(default_factory=list, repr=False)
    stages: tuple[StreamMap, ...] = ()


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
    other_patches = a.kernel_size != b.kernel_size or a.stride != b.stride
    if other_patches and not teacher.resamples:
        raise ValueError(
            f"The student's patches are {b.kernel_size} px, the teacher's {a.kernel_size}: they "
            f'must be equal, since {teacher.fixed_patches}.'
        )
    if other_patches and any(c.kernel_size != c.stride or any(c.padding) for c in (a, b)):
        raise ValueError(
            f'A patch embedding that overlaps or is padded cannot be resampled: the teacher has '
            f'{a}, the student {b}. Give both the same patches.'
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
        if not (other_patches and name == 'pos_embed'):
            require_same_shape(name, table, tables[name])


class _BlockHeir:
    """Makes one block of the student.

    Args:
        teacher, student: The two blocks.
        stream (StreamMap): Map of the token channels.
        head_dims (int): Width of a head.
        units (str): How heads and units are chosen, see :func:`recipe_of`.
    """

    def __init__(
        self, teacher: BlockView, student: BlockView, stream: StreamMap, head_dims: int, units: str
    ) -> None:
        self.teacher, self.student, self.stream = teacher, student, stream
        self.head_dims, self.units = head_dims, units

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
        groups, read, offset = keep_units(self.units, moments, weight, kept, group)
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
    recipe: Recipe, wide: int, narrow: int, statistics: NormStatistics | None, device: torch.device
) -> tuple[StreamMap, float]:
    """The map of a stream by either method, and the share of energy it keeps."""
    if narrow == wide:
        return IdentityMap(wide, device), 1.0
    if recipe.method == 'select':
        energy = statistics.covariance.diagonal()
        total = energy.sum().clamp_min(1e-300)
        if recipe.channels == 'uniform':
            index = uniform_index(wide, narrow, device)
            return SelectionMap(index, wide), float(energy[index].sum() / total)
        index = strongest_index(statistics.importance(), narrow)
        scale = statistics.spread(index)
        return SelectionMap(index, wide, scale), float(energy[index].sum() / total)
    directions, energy = statistics.directions(narrow - 1)
    return RotationMap(directions), energy


def stream_statistics(
    view: BlocksView, batches: Sequence[Tensor], last: Tensor | None = None
) -> NormStatistics:
    """What the LayerNorms of all blocks, and what follows the last, see of the given tokens.

    Args:
        view (BlocksView): The blocks.
        batches (Sequence[Tensor]): Tokens that enter the first.
        last (Tensor, optional): Weights ``[out, D]`` of what reads the tokens behind the last.
    """
    statistics = NormStatistics(view.dims, batches[0].device)

    def watch(norm: nn.LayerNorm, reader: nn.Linear):
        site = statistics.site(reader.weight.double() * norm.weight.double())
        return norm.register_forward_pre_hook(lambda _m, inputs: statistics.add(inputs[0], site))

    hooks = [
        watch(norm, reader)
        for block in view.blocks
        for norm, reader in ((block.norm1, block.qkv), (block.norm2, block.fc1))
    ]
    end = None if last is None else statistics.site(last)
    try:
        for tokens in batches:
            for i in range(len(view.blocks)):
                tokens = view.forward_block(i, tokens)
            statistics.add(tokens, end)
    finally:
        for hook in hooks:
            hook.remove()
    return statistics


def inherit_backbone(
    teacher: VitView,
    student: VitView,
    inputs: tuple[Sequence[Tensor], Sequence[Tensor]],
    recipe: Recipe,
    readout: Callable[[Tensor], Sequence[Tensor]],
    distance: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
    stream: StreamMap | None = None,
) -> Plan:
    """Write a student's backbone.

    Both networks run side by side, block by block, on the same images. Each linear layer of the
    student is made from the teacher's and may then be refitted on the student's own inputs: ``qkv``
    and ``fc1`` towards the teacher's values before the nonlinearity; ``proj`` and ``fc2`` towards
    what the teacher's layer adds to the stream (``refit='layer'``), or what the stream should be
    (``'block'``), so that errors do not add up and the last layer before a dropped block stands in
    for it.

    Where the student has patches of another size, its patch embedding and positions are
    resampled, and it is refitted to the teacher's tokens at the places of its own.

    Args:
        teacher (VitView): The teacher's backbone, in evaluation mode.
        student (VitView): The student's.
        inputs (tuple): Normalised images per batch, for the statistics and for the refits.
        recipe (Recipe): What is kept, and how.
        readout (Callable): From the teacher's last tokens to what the network makes of them; judges
            layers.
        distance (Callable): Between two readouts.
        stream (StreamMap, optional): Use this map instead of one chosen here.

    Returns:
        Plan: What was kept.
    """
    check_backbones(teacher, student)
    many, few = inputs
    embedded = [teacher.embed(x) for x in many]
    statistics = stream_statistics(teacher, embedded)
    energy = 1.0
    if stream is None:
        stream, energy = stream_map(recipe, teacher.dims, student.dims, statistics, many[0].device)
    layers = kept_layers(teacher, student, embedded, recipe, readout, distance)
    del embedded

    conv, own = teacher.patch_conv(), student.patch_conv()
    weight = resize_patch_embedding(conv.weight, own.kernel_size).flatten(1)
    weight = (stream.write @ weight).reshape(own.weight.shape)
    assign_layer(own, weight, None if conv.bias is None else stream.write @ conv.bias.double())
    tables = student.token_parameters()
    for name, table in teacher.token_parameters().items():
        assign(tables[name], teacher.table_for(student, name, table) @ stream.write.t())

    x = [teacher.embed(batch) for batch in few]
    places = teacher.places_of(student, tuple(few[0].shape[-2:]))
    if recipe.refits and own.kernel_size != conv.kernel_size:
        _refit_patches(student, few, [places(tokens) @ stream.write.t().to(x[0]) for tokens in x])
    y = [student.embed(batch) for batch in few]
    heads, x, y = inherit_blocks(teacher, student, layers, stream, recipe, x, y, places)
    return Plan(stream, layers, heads, energy, x, y)


def _refit_patches(student: VitView, images: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Refit a patch embedding to the tokens ``[B, N, d]`` that are to enter the first block."""
    conv = student.patch_conv()
    if conv.weight[0].numel() > MAX_PIXELS:
        return
    fit = Refit(conv.weight.flatten(1), conv.bias)
    for i, (batch, wanted) in enumerate(zip(images, targets, strict=True)):
        patches = whole_patches(batch, conv.kernel_size)
        written = conv(patches).flatten(2).transpose(1, 2)
        prefix = wanted.shape[1] - written.shape[1]
        # Without what is added to the patches: positions.
        wanted = (wanted - student.embed(batch))[:, prefix:] + written
        rows = torch.nn.functional.unfold(patches, conv.kernel_size, stride=conv.stride)
        fit.add(rows.transpose(1, 2).flatten(0, 1), wanted.flatten(0, 1), held_out(i))
    assign_layer(conv, *fit.solve())


def inherit_blocks(
    teacher: BlocksView,
    student: BlocksView,
    layers: Sequence[int],
    stream: StreamMap,
    recipe: Recipe,
    x: list[Tensor],
    y: list[Tensor],
    places: Callable[[Tensor], Tensor] | None = None,
) -> tuple[list[list[int]], list[Tensor], list[Tensor]]:
    """Write the student's blocks, one after the other.

    Args:
        teacher (BlocksView): The teacher's.
        student (BlocksView): The student's.
        layers (Sequence[int]): The teacher's block for each of the student's.
        stream (StreamMap): The map of the token channels.
        recipe (Recipe): What is kept, and how.
        x (list[Tensor]): The teacher's tokens before its first block, per batch.
        y (list[Tensor]): The student's.
        places (Callable, optional): Takes tokens of the teacher to the places of the student's.

    Returns:
        tuple: Kept heads per block, and both networks' tokens behind the last.
    """
    x = [_advance(teacher, range(layers[0]), tokens) for tokens in x]
    heads = []
    for slot, layer in enumerate(layers):
        end = layers[slot + 1] if slot + 1 < len(layers) else len(teacher.blocks)
        kept, x, y = _inherit_block(
            teacher,
            student,
            (layer, slot, range(layer + 1, end)),
            stream,
            recipe,
            x,
            y,
            places or (lambda tokens: tokens),
        )
        heads.append(kept)
    return heads, x, y


def _advance(view: BlocksView, blocks: Sequence[int], tokens: Tensor) -> Tensor:
    for index in blocks:
        tokens = view.forward_block(index, tokens)
    return tokens


def kept_layers(
    teacher: BlocksView,
    student: BlocksView,
    batches: Sequence[Tensor],
    recipe: Recipe,
    readout: Callable[[Tensor], Sequence[Tensor]],
    distance: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
) -> list[int]:
    """The teacher's block for each of the student's.

    Args:
        teacher (BlocksView): The teacher's.
        student (BlocksView): The student's.
        batches (Sequence[Tensor]): Tokens that enter the teacher's first block.
        recipe (Recipe): How layers are chosen.
        readout (Callable): As of :func:`inherit_backbone`.
        distance (Callable): Likewise.
    """
    if recipe.layers == 'uniform':
        return uniform_layers(teacher.kinds, student.kinds)
    some, count = [], 0
    for batch in batches:
        some.append(batch)
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


def _inherit_block(teacher, student, which, stream, recipe, x, y, places):
    """Make a block of the student from one of the teacher, and run both."""
    layer, slot, dropped = which
    tb, sb = teacher.blocks[layer], student.blocks[slot]
    heir = _BlockHeir(tb, sb, stream, teacher.head_dims, recipe.units)
    own = recipe.refit == 'block'
    write = stream.write.to(x[0])

    def goal(before: Tensor, after: Tensor, ours: Tensor) -> Tensor:
        """What a layer that writes into the student's stream is to give."""
        if own:
            return places(after) @ write.t() - ours
        return places(after - before) @ write.t()

    moments = Moments(tb.proj.in_features, x[0].device)
    normed = [tb.norm1(tokens) for tokens in x]
    middle = []
    for tokens, n in zip(x, normed, strict=True):
        mixed = teacher.mix(layer, n)
        moments.add(mixed)
        middle.append(tokens + tb.write(mixed, 0))
    groups, rows = heir.attention(moments, student.num_heads)
    tables = student.head_tables(slot)
    for name, table in teacher.head_tables(layer, groups).items():
        if name not in tables or tables[name].shape != table.shape:
            raise ValueError(
                f'Block {layer} of the teacher has a {name} of {tuple(table.shape)}, block '
                f'{slot} of the student '
                f'{tuple(tables[name].shape) if name in tables else "none"}: give both the same '
                'img_size, window_size and '
                'use_rel_pos.'
            )
        assign(tables[name], table)
    if recipe.refits:
        heir.correct(
            sb.qkv,
            ((sb.norm1(b), places(tb.qkv(n)[..., rows])) for b, n in zip(y, normed, strict=True)),
        )
    del normed
    mixed = [student.mix(slot, sb.norm1(tokens)) for tokens in y]
    if recipe.refits:
        heir.correct(
            sb.proj,
            ((m, goal(a, b, c)) for m, a, b, c in zip(mixed, x, middle, y, strict=True)),
        )
    y = [b + sb.write(m, 0) for b, m in zip(y, mixed, strict=True)]

    moments = Moments(tb.fc2.in_features, x[0].device)
    x, after = [], []
    for tokens in middle:
        hidden = tb.act(tb.fc1(tb.norm2(tokens)))
        moments.add(hidden)
        block = tokens + tb.write(hidden, 1)
        x.append(_advance(teacher, dropped, block))
        # A layer by itself knows nothing of the blocks that are dropped behind it.
        after.append(x[-1] if own else block)
    units = heir.mlp(moments)
    if recipe.refits:
        heir.correct(
            sb.fc1,
            (
                (sb.norm2(b), places(tb.fc1(tb.norm2(a))[..., units]))
                for a, b in zip(middle, y, strict=True)
            ),
        )
    hidden = [sb.act(sb.fc1(sb.norm2(tokens))) for tokens in y]
    if recipe.refits:
        heir.correct(
            sb.fc2,
            ((h, goal(a, b, c)) for h, a, b, c in zip(hidden, middle, after, y, strict=True)),
        )
    y = [b + sb.write(h, 1) for b, h in zip(y, hidden, strict=True)]
    return groups.tolist(), x, y
