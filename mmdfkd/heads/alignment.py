"""Layers and resizing between a student's features and its teacher's."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGN = ('auto', 'always', 'never')


def make_aligner(
    student_width: int, teacher_width: int, conv: bool, align: str = 'auto'
) -> nn.Module:
    """A linear map from the student's width to the teacher's.

    Weights start orthogonal (an isometry where the teacher is wider, the identity where widths
    agree), biases at zero: the student's features arrive at their own scale, whatever the widths.

    Args:
        student_width (int): Channels in.
        teacher_width (int): Channels out.
        conv (bool): A 1x1 convolution of maps ``[N, C, H, W]`` instead of a linear layer on the
            last dimension.
        align (str): ``'auto'`` gives none where the widths agree, ``'always'`` always gives one,
            ``'never'`` insists on equal widths. Defaults to ``'auto'``.

    Returns:
        nn.Module: The layer; ``nn.Identity`` for none.

    Raises:
        ValueError: On an unknown ``align``, or unequal widths with ``'never'``.
    """
    if align not in ALIGN:
        raise ValueError(f'align must be one of {ALIGN}, not {align!r}.')
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
        layer (nn.Module): Of :func:`make_aligner`; an identity stays as it is.
        inputs (Tensor): Student features ``[N, in]``.
        targets (Tensor): Teacher features ``[N, out]``.
        ridge (float): Share of the mean input energy added to the normal equations. Defaults to
            1e-3.
    """
    if isinstance(layer, nn.Identity):
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
