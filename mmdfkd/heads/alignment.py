"""Layers and resizing between a student's features and its teacher's."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mlp import MLP

ALIGN = ('auto', 'always', 'never', 'mlp')


def read_align(align: str | Mapping) -> tuple[str, dict]:
    """The kind of aligner and its options.

    Raises:
        ValueError: On an unknown kind, options that it does not take, or an MLP of fewer than two
            linear layers or without inner width.
    """
    options = {'type': align} if isinstance(align, str) else dict(align)
    kind = options.pop('type', None)
    if kind not in ALIGN:
        raise ValueError(f'align must be one of {ALIGN}, not {kind!r}.')
    allowed = ('layers', 'hidden') if kind == 'mlp' else ()
    if not set(options) <= set(allowed):
        raise ValueError(
            f"align='{kind}' takes the options {list(allowed)}, not "
            f'{sorted(set(options) - set(allowed))}.'
        )
    layers, hidden = options.get('layers', 2), options.get('hidden')
    if layers < 2 or (hidden is not None and hidden < 1):
        raise ValueError(
            f"align='mlp' needs layers of 2 or more and hidden of 1 or more, not {layers} and "
            f"{hidden}; one linear layer is align='always'."
        )
    return kind, options


def make_aligner(
    student_width: int, teacher_width: int, conv: bool, align: str | Mapping = 'auto'
) -> nn.Module:
    """A map from the student's width to the teacher's: a linear one, an MLP, or none.

    Weights of a linear one start orthogonal (an isometry where the teacher is wider, the identity
    where widths agree), biases at zero: the student's features arrive at their own scale, whatever
    the widths. An MLP starts by chance.

    Args:
        student_width (int): Channels in.
        teacher_width (int): Channels out.
        conv (bool): A 1x1 convolution of maps ``[N, C, H, W]`` instead of a linear layer on the
            last dimension.
        align (str | Mapping): ``'auto'`` gives a linear one, and none where the widths agree;
            ``'always'`` always gives a linear one; ``'never'`` insists on equal widths; ``'mlp'``
            always gives an :class:`~mmdfkd.heads.mlp.MLP`, place by place. A mapping with ``type``
            sets its ``layers`` (linear ones; 2) and ``hidden`` (their inner width; twice the
            student's), such as ``dict(type='mlp', layers=3)``. Defaults to ``'auto'``.

    Returns:
        nn.Module: The layer; ``nn.Identity`` for none.

    Raises:
        ValueError: On an unknown ``align``, options that it does not take, or unequal widths with
            ``'never'``.
    """
    align, options = read_align(align)
    if align == 'mlp':
        hidden = options.get('hidden') or 2 * student_width
        return MLP(student_width, hidden, teacher_width, options.get('layers', 2), maps=conv)
    if align == 'never' and student_width != teacher_width:
        raise ValueError(
            f"align='never', but the student has {student_width} channels and the teacher "
            f'{teacher_width}: '
            "use align='auto'."
        )
    if align != 'always' and student_width == teacher_width:
        return nn.Identity()
    if conv:
        layer = nn.Conv2d(student_width, teacher_width, 1)
    else:
        layer = nn.Linear(student_width, teacher_width)
    if student_width == teacher_width:
        nn.init.eye_(layer.weight.data.view(teacher_width, student_width))
    else:
        nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def fit_aligner(layer: nn.Module, inputs: Tensor, targets: Tensor, ridge: float = 1e-3) -> None:
    """Set an aligner to the ridge least-squares map from student features to the teacher's.

    An inherited student's features are the teacher's in other coordinates. From an arbitrary
    aligner the first steps would bend them to it; from the fitted one they keep what they have.

    Args:
        layer (nn.Module): Of :func:`make_aligner`; what is no linear layer (an identity, an MLP)
            stays as it is.
        inputs (Tensor): Student features ``[N, in]``.
        targets (Tensor): Teacher features ``[N, out]``.
        ridge (float): Share of the mean input energy added to the normal equations. Defaults to
            1e-3.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        return
    x, y = inputs.double(), targets.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.t() @ x
    level = gram.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    gram = gram + ridge * level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram, x.t() @ y).t()
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(y_mean - weight @ x_mean)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps ``[N, C, H, W]`` bilinearly to ``size``; as they are where they have it."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode='bilinear', align_corners=False)


def output_widths(widths: Mapping, place: str) -> list[int]:
    """Widths of a place, or an error that names the places there are."""
    if place not in widths:
        raise KeyError(f"There is no width of '{place}'; known are {sorted(widths)}.")
    found = widths[place]
    return [found] if isinstance(found, int) else list(found)
