"""A smaller Swin classifier made from its teacher."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdfkd.adapters import Adapter

from .families import Heir, compare_answers
from .least_squares import Refit, channel_fit
from .recipe import Recipe
from .streams import IdentityMap, SelectionMap, StreamMap
from .transformer import (
    Plan,
    assign,
    assign_layer,
    held_out,
    inherit_blocks,
    kept_layers,
    stream_map,
    stream_statistics,
)
from .views import BlocksView, BlockView, replaced


class SwinStageView(BlocksView):
    """The blocks of one stage of mmpretrain's ``SwinTransformer``; its tokens are ``[B, h w, D]``.

    Attributes:
        stage: The stage.
        grid: Height and width of its tokens, to be set before it is run.
    """

    grid: tuple[int, int] = (0, 0)

    def __init__(self, stage: nn.Module) -> None:
        self.stage = stage
        self.dims = stage.embed_dims
        self.kinds = tuple('shifted' if b.attn.shift_size else 'window' for b in stage.blocks)
        attention = stage.blocks[0].attn.w_msa
        if type(attention).__name__ != 'WindowMSA':
            raise ValueError(
                f'Inheritance needs the WindowMSA of Swin, not a {type(attention).__name__}.'
            )
        self.num_heads = attention.num_heads
        self.head_dims = self.dims // self.num_heads
        self.blocks = [self._view(block) for block in stage.blocks]

    def _view(self, block: nn.Module) -> BlockView:
        attn, ffn = block.attn.w_msa, block.ffn.layers
        if attn.num_heads != self.num_heads or not isinstance(ffn[0], nn.Sequential):
            raise ValueError(
                'Inheritance needs the same heads and a two-layer MLP in all blocks of a stage.'
            )
        first, act, second = ffn[0][0], ffn[0][1], ffn[1]
        return BlockView(block, block.norm1, attn.qkv, attn.proj, block.norm2, first, act, second)

    def mix(self, index: int, normed: Tensor) -> Tensor:
        """Outputs of the heads, before ``proj``."""
        attention = self.stage.blocks[index].attn
        with replaced(attention.w_msa, proj=nn.Identity()):
            return attention(normed, self.grid)

    def head_tables(self, index: int, heads: Tensor | None = None) -> dict[str, Tensor]:
        """The table of relative positions, which has a column for each head."""
        table = self.stage.blocks[index].attn.w_msa.relative_position_bias_table
        return {'relative_position_bias_table': table if heads is None else table[:, heads]}

    def forward_block(self, index: int, tokens: Tensor) -> Tensor:
        """One whole block."""
        return self.stage.blocks[index](tokens, self.grid)


class SwinView:
    """mmpretrain's ``SwinTransformer`` taken apart.

    Attributes:
        backbone: The network.
        stages: Views of its stages.
    """

    def __init__(self, backbone: nn.Module) -> None:
        last = len(backbone.stages) - 1
        if backbone.out_after_downsample or tuple(backbone.out_indices) != (last,):
            raise ValueError(
                'Inheritance needs a Swin that returns its last stage alone '
                f'(out_indices=({last},)), not {tuple(backbone.out_indices)}.'
            )
        self.backbone = backbone
        self.stages = [SwinStageView(stage) for stage in backbone.stages]
        self.norm: nn.Module = getattr(backbone, f'norm{last}')
        if not isinstance(self.norm, nn.LayerNorm):
            raise ValueError(f'Inheritance needs a LayerNorm at the end, not a {self.norm}.')

    def patches(self, inputs: Tensor) -> Tensor:
        """Embedded patches before their norm ``[B, N, D]``; notes the grid of every stage."""
        embed = self.backbone.patch_embed
        norm, embed.norm = embed.norm, None
        try:
            tokens, grid = embed(inputs)
        finally:
            embed.norm = norm
        for stage in self.stages:
            stage.grid = grid
            if stage.stage.downsample is not None:
                # Odd sides are padded.
                strides = stage.stage.downsample.sampler.stride
                strides = (strides, strides) if isinstance(strides, int) else strides
                grid = tuple(-(-n // s) for n, s in zip(grid, strides, strict=True))
        return tokens

    def embed(self, patches: Tensor) -> Tensor:
        """Tokens that enter the first stage, from :meth:`patches`."""
        from mmpretrain.models.utils import resize_pos_embed

        net = self.backbone
        norm = net.patch_embed.norm
        tokens = patches if norm is None else norm(patches)
        if net.use_abs_pos_embed:
            tokens = tokens + resize_pos_embed(
                net.absolute_pos_embed,
                net.patch_resolution,
                self.stages[0].grid,
                net.interpolate_mode,
                0,
            )
        return tokens

    def run_stage(self, index: int, tokens: Tensor) -> Tensor:
        """The blocks of a stage, without the merging of patches behind them."""
        stage = self.stages[index]
        for i in range(len(stage.blocks)):
            tokens = stage.forward_block(i, tokens)
        return tokens

    def merged(self, index: int, tokens: Tensor) -> Tensor:
        """Tokens behind a stage, put side by side as its merging reads them, before the norm."""
        merge = self.stages[index].stage.downsample
        norm, reduction = merge.norm, merge.reduction
        merge.norm, merge.reduction = None, nn.Identity()
        try:
            return merge(tokens, self.stages[index].grid)[0]
        finally:
            merge.norm, merge.reduction = norm, reduction

    def down(self, index: int, tokens: Tensor) -> Tensor:
        """The merging of patches behind a stage; the last has none."""
        merge = self.stages[index].stage.downsample
        return tokens if merge is None else merge(tokens, self.stages[index].grid)[0]

    def pool(self, tokens: Tensor) -> Tensor:
        """What the classification head reads of the last stage's tokens: ``[B, D]``."""
        return self.norm(tokens).mean(1)

    def reader(self, index: int) -> Tensor | None:
        """Weights ``[out, D]`` on the channels behind a stage: of the merging of patches."""
        merge = self.stages[index].stage.downsample
        if merge is None:
            return None
        weight = merge.reduction.weight.double()
        if merge.norm is not None:
            weight = weight * merge.norm.weight.double()
        channels = self.stages[index].dims
        return weight.view(len(weight), channels, -1).transpose(1, 2).flatten(0, 1)


def spread_of(batches: Sequence[Tensor], index: Tensor) -> float:
    """As :meth:`NormStatistics.spread`, of tokens ``[..., D]`` per batch."""
    kept = everything = 0.0
    for tokens in batches:
        x = tokens.flatten(0, -2).double()
        whole = x.var(-1, correction=0)
        kept += float((x[:, index].var(-1, correction=0) / whole.clamp_min(1e-12)).sum())
        everything += len(x)
    return (kept / everything) ** 0.5


class SwinHeir(Heir):
    """mmpretrain's Swin with a linear head.

    Each stage is a stream of its own with its own choice of channels; the merging of patches reads
    the one and writes the other. ``'slice'`` is refused where channels are cut: the norm behind the
    patch embedding writes into the stream, and no rotation passes through its affine (a rotated
    vector has another mean and deviation over its channels, so that no student's norm gives it).
    """

    def __init__(self, teacher: Adapter, student: Adapter) -> None:
        super().__init__(teacher, student)
        for net in (teacher.net, student.net):
            if type(net.neck).__name__ != 'GlobalAveragePooling' or not isinstance(
                getattr(net.head, 'fc', None), nn.Linear
            ):
                raise ValueError(
                    'Inheritance supports a Swin with GlobalAveragePooling and a linear head, not '
                    f'{type(net.neck).__name__} with {type(net.head).__name__}.'
                )

    @staticmethod
    def look_into(backbone: nn.Module) -> SwinView:
        """The view of a Swin."""
        return SwinView(backbone)

    def check(self) -> None:
        """Stage by stage."""
        theirs, own = self.views
        if len(theirs.stages) != len(own.stages):
            raise ValueError(
                f'The student has {len(own.stages)} stages, the teacher {len(theirs.stages)}: they '
                'must be as many.'
            )
        convs = [view.backbone.patch_embed.projection for view in self.views]
        if convs[0].kernel_size != convs[1].kernel_size or convs[0].stride != convs[1].stride:
            raise ValueError(
                f"The student's patches are {convs[1].kernel_size} px, the teacher's "
                f"{convs[0].kernel_size}: they must be equal, since a Swin's windows and stages "
                'are laid out in patches.'
            )
        if theirs.backbone.use_abs_pos_embed != own.backbone.use_abs_pos_embed:
            raise ValueError('Give teacher and student the same use_abs_pos_embed.')
        for i, (a, b) in enumerate(zip(theirs.stages, own.stages, strict=True)):
            sizes = dict(
                channels=(a.dims, b.dims),
                blocks=(len(a.blocks), len(b.blocks)),
                heads=(a.num_heads, b.num_heads),
                units=(len(a.blocks[0].fc1.weight), len(b.blocks[0].fc1.weight)),
            )
            for name, (wide, narrow) in sizes.items():
                if narrow > wide:
                    raise ValueError(
                        f"Stage {i} of the student has {narrow} {name}, more than the teacher's "
                        f'{wide}: a student can inherit from a wider or equal teacher only.'
                    )
            if a.head_dims != b.head_dims:
                raise ValueError(
                    f'Stage {i}: the heads of the student are {b.head_dims} channels wide, the '
                    f"teacher's {a.head_dims}: whole heads are inherited, so the width must be "
                    'equal. Change num_heads.'
                )
            windows = [view.stage.blocks[0].attn.window_size for view in (a, b)]
            if windows[0] != windows[1]:
                raise ValueError(
                    f'Stage {i}: the window_size of the student is {windows[1]}, of the teacher '
                    f'{windows[0]}: they must be equal.'
                )

    def tokens(self, inputs: Tensor) -> int:
        """Tokens of the first stage of one image."""
        return self.views[0].patches(inputs).shape[1]

    def _rest(self, index: int):
        """From the tokens behind the blocks of a stage to the logits."""

        def readout(tokens: Tensor) -> list[Tensor]:
            theirs = self.views[0]
            for i in range(index, len(theirs.stages)):
                if i > index:
                    tokens = theirs.run_stage(i, tokens)
                tokens = theirs.down(i, tokens)
            return self.readout(tokens)

        return readout

    def readout(self, tokens: Tensor) -> list[Tensor]:
        """Logits, from the last stage's tokens."""
        return [self.teacher.net.head.fc(self.views[0].pool(tokens))]

    def distance(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        """Between two readouts."""
        return F.kl_div(
            ours[0].log_softmax(-1),
            theirs[0].log_softmax(-1),
            reduction='batchmean',
            log_target=True,
        )

    def backbone(self, inputs: tuple[Sequence[Tensor], Sequence[Tensor]], recipe: Recipe) -> Plan:
        """Write the student's backbone, stage by stage."""
        theirs, own = self.views
        widths = [(a.dims, b.dims) for a, b in zip(theirs.stages, own.stages, strict=True)]
        if recipe.method == 'slice' and any(a != b for a, b in widths):
            raise ValueError(
                "Inheritance with method='slice' cannot cut the channels of a Swin: the LayerNorm "
                'behind its patch embedding writes into the stream, and a rotation of its output '
                "is no LayerNorm's output. Give the student the teacher's width (heads, units and "
                "blocks can be cut), or take method='select' with refit='block'."
            )
        many, few = inputs
        device = many[0].device
        tokens = [theirs.embed(theirs.patches(batch)) for batch in many]
        maps, layers, energies = [], [], []
        for i, (old, new) in enumerate(zip(theirs.stages, own.stages, strict=True)):
            statistics = stream_statistics(old, tokens, theirs.reader(i))
            stream, energy = stream_map(recipe, old.dims, new.dims, statistics, device)
            maps.append(stream)
            energies.append(energy)
            layers.append(kept_layers(old, new, tokens, recipe, self._rest(i), self.distance))
            tokens = [theirs.down(i, theirs.run_stage(i, t)) for t in tokens]
        del tokens
        return self._write(few, maps, layers, sum(energies) / len(energies), recipe)

    def _write(
        self,
        images: Sequence[Tensor],
        maps: Sequence[StreamMap],
        layers: Sequence[list[int]],
        energy: float,
        recipe: Recipe,
    ) -> Plan:
        theirs, own = self.views
        x, y = self._embedding(images, maps[0], recipe)
        heads, numbers, first = [], [], 0
        for i, (old, new) in enumerate(zip(theirs.stages, own.stages, strict=True)):
            kept, x, y = inherit_blocks(old, new, layers[i], maps[i], recipe, x, y)
            heads += kept
            numbers += [first + layer for layer in layers[i]]
            first += len(old.blocks)
            if i + 1 < len(maps):
                x, y = self._merge(i, maps[i], maps[i + 1], recipe, x, y)
        return Plan(maps[-1], numbers, heads, energy, x, y, tuple(maps))

    def _embedding(
        self, images: Sequence[Tensor], stream: StreamMap, recipe: Recipe
    ) -> tuple[list[Tensor], list[Tensor]]:
        theirs, own = self.views
        old, new = theirs.backbone, own.backbone
        conv = old.patch_embed.projection
        weight = stream.write @ conv.weight.double().flatten(1)
        bias = None if conv.bias is None else stream.write @ conv.bias.double()
        assign_layer(new.patch_embed.projection, weight, bias)
        raw = [theirs.patches(batch) for batch in images]
        norm, own_norm = old.patch_embed.norm, new.patch_embed.norm
        if norm is not None:
            _assign_norm(norm, own_norm, _rescaled(stream, raw, recipe))
        if old.use_abs_pos_embed:
            if old.absolute_pos_embed.shape[1] != new.absolute_pos_embed.shape[1]:
                raise ValueError('Give teacher and student the same img_size.')
            assign(new.absolute_pos_embed, old.absolute_pos_embed.double() @ stream.write.t())
        mine = [own.patches(batch) for batch in images]
        if norm is not None and recipe.refits and not isinstance(stream, IdentityMap):
            write = stream.write.to(raw[0])
            inputs = [F.layer_norm(b, b.shape[-1:], eps=own_norm.eps).flatten(0, 1) for b in mine]
            goals = [(norm(b) @ write.t()).flatten(0, 1) for b in raw]
            weight, bias = channel_fit(inputs, goals, own_norm.weight, own_norm.bias)
            assign(own_norm.weight, weight)
            assign(own_norm.bias, bias)
        return [theirs.embed(b) for b in raw], [own.embed(b) for b in mine]

    def _merge(
        self,
        index: int,
        before: StreamMap,
        after: StreamMap,
        recipe: Recipe,
        x: Sequence[Tensor],
        y: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The merging of patches: it reads one stage's channels and writes the next one's."""
        theirs, own = self.views
        old, new = (view.stages[index].stage.downsample for view in self.views)
        side = [theirs.merged(index, tokens) for tokens in x]
        # A channel's neighbours stand beside each other.
        positions = side[0].shape[-1] // theirs.stages[index].dims
        wide = before
        if isinstance(before, SelectionMap):
            columns = before.index[:, None] * positions
            columns = columns + torch.arange(positions, device=columns.device)
            wide = SelectionMap(columns.flatten(), side[0].shape[-1])
        elif isinstance(before, IdentityMap):
            wide = IdentityMap(side[0].shape[-1], side[0].device)
        if old.norm is not None:
            _assign_norm(old.norm, new.norm, _rescaled(wide, side, recipe))
        bias = old.reduction.bias
        assign_layer(
            new.reduction,
            after.write @ old.reduction.weight.double() @ wide.read,
            None if bias is None else after.write @ bias.double(),
        )
        x = [theirs.down(index, tokens) for tokens in x]
        if recipe.refits:
            write = after.write.to(x[0])
            fit = Refit(new.reduction.weight, new.reduction.bias)
            for i, (a, b) in enumerate(zip(x, y, strict=True)):
                mine = own.merged(index, b)
                mine = mine if new.norm is None else new.norm(mine)
                fit.add(mine.flatten(0, 1), (a @ write.t()).flatten(0, 1), held_out(i))
            assign_layer(new.reduction, *fit.solve())
        return x, [own.down(index, tokens) for tokens in y]

    def finish(self, plan: Plan, recipe: Recipe, images: Sequence[Tensor]) -> None:
        """Write the last norm and the head."""
        theirs, own = self.views
        stream = _rescaled(plan.stream, plan.teacher_tokens, recipe)
        _assign_norm(theirs.norm, own.norm, stream)
        fc, own_fc = self.teacher.net.head.fc, self.student.net.head.fc
        assign_layer(own_fc, fc.weight.double() @ stream.read, fc.bias)
        if recipe.refits:
            fit = Refit(own_fc.weight, own_fc.bias)
            pairs = zip(plan.teacher_tokens, plan.student_tokens, strict=True)
            for i, (x, y) in enumerate(pairs):
                fit.add(own.pool(y), fc(theirs.pool(x)), held_out(i))
            assign_layer(own_fc, *fit.solve())

    def agreement(self, images: Sequence[Tensor], maps: None) -> dict[str, float | list[float]]:
        """Compare both networks on ``images``."""
        return compare_answers(self.teacher, self.student, images)


def _rescaled(stream: StreamMap, tokens: Sequence[Tensor], recipe: Recipe) -> StreamMap:
    """A selection for the norm of these tokens, whose spread is another than elsewhere."""
    if not isinstance(stream, SelectionMap) or recipe.channels == 'uniform':
        return stream
    channels = stream.write.shape[1]
    return SelectionMap(stream.index, channels, spread_of(tokens, stream.index))


def _assign_norm(norm: nn.LayerNorm, own: nn.LayerNorm, stream: StreamMap) -> None:
    _, weight, bias = stream.through_norm(norm.weight, norm.bias)
    assign(own.weight, weight)
    assign(own.bias, bias)
