"""Hidden layers of detection heads: units are chosen, the next layer refitted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import MAX_ROWS, LayerView, channels_last
from .least_squares import Moments, keep_units
from .pyramid import fit_norm, refit_layer
from .recipe import Recipe
from .transformer import assign

#: Layers with many inputs look at fewer rows.
_WIDE_ROWS = 8192


@dataclass
class Stage:
    """A linear layer, an optional channel norm and an activation.

    Attributes:
        layer: Convolution, transposed convolution or linear layer (its input is flattened).
        norm: LayerNorm over the channels of maps, or None.
        act: The activation.
    """

    layer: nn.Module
    norm: nn.Module | None = None
    act: Callable[[Tensor], Tensor] = torch.relu

    def before(self, inputs: Tensor) -> Tensor:
        """The layer's output before norm and activation."""
        return self.layer(inputs.flatten(1) if isinstance(self.layer, nn.Linear) else inputs)

    def after(self, outputs: Tensor) -> Tensor:
        """Norm and activation; ``outputs`` stay as they are."""
        if self.norm is not None:
            return self.act(self.norm(outputs))
        return self.act(outputs.clone() if getattr(self.act, 'inplace', False) else outputs)


def conv_stage(module: nn.Module) -> Stage:
    """A stage from mmcv's ``ConvModule``.

    Raises:
        ValueError: If its norm is not a LayerNorm over channels: batch statistics cannot be cut
            this way.
    """
    norm = module.norm if module.with_norm else None
    if norm is not None and not isinstance(norm, nn.LayerNorm):
        raise ValueError(
            'Inheritance supports heads without a norm or with mmdfkd.LayerNorm2d, not '
            f'{type(norm).__name__}.'
        )
    return Stage(module.conv, norm, module.activate if module.with_activation else nn.Identity())


def _channels(layer: nn.Module, channels: int) -> Tensor:
    """Weights on channels ``[rows, channels]``; linear layers may read flattened maps."""
    return LayerView(layer).by_channel(channels)


def _importance(readers: Sequence[nn.Module], moments: Moments) -> Tensor:
    """All readers of a stage's channels ``[rows, channels]``, scaled to equal output variance."""
    channels = len(moments.sum)
    parts = []
    for reader in readers:
        weight = LayerView(reader)
        matrix = weight.matrix()
        matrix = matrix.view(-1, channels) if weight.spreads else weight.by_channel(channels)
        level = ((matrix @ moments.covariance) * matrix).sum().sqrt().clamp_min(1e-12)
        parts.append(matrix / level)
    return torch.cat(parts)


def inherit_chain(
    teacher: Sequence[Stage],
    student: Sequence[Stage],
    finals: Sequence[tuple[nn.Module, nn.Module]],
    inputs: tuple[Sequence[Tensor], Sequence[Tensor]],
    held: Sequence[bool],
    read: Tensor,
    recipe: Recipe,
) -> None:
    """Write the layers of a head.

    Args:
        teacher (Sequence[Stage]): The teacher's hidden stages.
        student (Sequence[Stage]): The student's, of equal number.
        finals (Sequence): Pairs of output layers that read the last stage.
        inputs (tuple): What the teacher's and the student's first stage read, maps per batch.
        held (Sequence[bool]): Which of them are held out.
        read (Tensor): ``[C, c]``, from the student's input channels to the teacher's.
        recipe (Recipe): How units are chosen, and whether layers are refitted.
    """
    if len(teacher) != len(student):
        raise ValueError(
            f"The student's head has {len(student)} hidden layers, the teacher's {len(teacher)}."
        )
    refit = recipe.refits
    x, y = list(inputs[0]), list(inputs[1])
    offset = None
    for index, (old, new) in enumerate(zip(teacher, student, strict=True)):
        raw = [old.before(b) for b in x]
        x = [old.after(b) for b in raw]
        readers = [teacher[index + 1].layer] if index + 1 < len(teacher) else [a for a, _ in finals]
        units, next_read, next_offset = _choose(x, readers, new.layer, recipe.units)
        LayerView(new.layer).assign(*LayerView(old.layer).derive(read, rows=units, offset=offset))
        if refit:
            _correct(new.layer, y, [b[:, units] for b in raw], held)
        own = [new.before(b) for b in y]
        if new.norm is not None:
            assign(new.norm.weight, old.norm.weight[units])
            assign(new.norm.bias, old.norm.bias[units])
            if refit and len(units) < raw[0].shape[1]:
                per_pair = max(1, MAX_ROWS // len(own))
                fit_norm(
                    new.norm,
                    ((a, old.norm(b)[:, units]) for a, b in zip(own, raw, strict=True)),
                    per_pair,
                )
        y = [new.after(b) for b in own]
        read, offset = next_read, next_offset
    for old, new in finals:
        LayerView(new).assign(*LayerView(old).derive(read, offset=offset))
        if refit:
            flat = isinstance(new, nn.Linear)
            mine = [b.flatten(1) if flat else b for b in y]
            _correct(new, mine, [old(b.flatten(1) if flat else b) for b in x], held)


def _choose(hidden, readers, own: nn.Module, how: str) -> tuple[Tensor, Tensor, Tensor]:
    channels = hidden[0].shape[1]
    kept = own.out_features if isinstance(own, nn.Linear) else own.out_channels
    if kept > channels:
        raise ValueError(
            f"A hidden layer of the student's head has {kept} channels, more than the teacher's "
            f'{channels}.'
        )
    moments = Moments(channels, hidden[0].device)
    for b in hidden:
        moments.add(channels_last(b) if b.dim() > 2 else b)
    return keep_units(how, moments, _importance(readers, moments), kept)


def _correct(
    layer: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor], held: Sequence[bool]
) -> None:
    width = LayerView(layer).matrix().shape[1]
    per_pair = max(1, (MAX_ROWS if width <= 1024 else _WIDE_ROWS) // len(inputs))
    flat = isinstance(layer, nn.Linear)
    pairs = (
        (a.flatten(1) if flat else a, b, h) for a, b, h in zip(inputs, targets, held, strict=True)
    )
    refit_layer(layer, pairs, per_pair)
