"""Focal and global distillation of a detector's pyramid."""

import torch
from torch import Tensor

from .reduce import at_least_float32

_EPS = torch.finfo(torch.float32).eps


def box_places(
    boxes: Tensor, grid: tuple[int, int], image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """How much each place of a map counts as foreground, and as background.

    Each place weighs one over the number of places of the smallest box that covers it, so that
    every object counts alike whatever its size (FGD's scale mask, the largest ``1 / (H_r W_r)``);
    a box smaller than a place has the place that its centre falls into. Background is where no box
    is. Both sum to 1, or to 0 where there is none.

    Args:
        boxes (Tensor): ``[N, 4]`` xyxy pixels; may be empty.
        grid (tuple[int, int]): Rows and columns of the map.
        image_size (tuple[int, int]): ``(H, W)`` pixels of the image.

    Returns:
        tuple[Tensor, Tensor]: ``[h, w]`` each.
    """
    h, w = grid
    steps = boxes.new_tensor([w / image_size[1], h / image_size[0]])
    low, high = (boxes.float() * steps.repeat(2)).split(2, -1)
    limit = boxes.new_tensor([w, h])
    first = ((low + high) / 2).floor().clamp_min(0).minimum(limit - 1)
    low, high = low.floor().minimum(first).clamp_min(0), high.ceil().maximum(first + 1)
    high = high.minimum(limit)
    x = torch.arange(w, device=boxes.device)
    y = torch.arange(h, device=boxes.device)
    inside = ((x >= low[:, :1]) & (x < high[:, :1]))[:, None] & (
        (y >= low[:, 1:]) & (y < high[:, 1:])
    )[:, :, None]
    share = inside / (high - low).prod(-1)[:, None, None]
    foreground = share.amax(0) if len(boxes) else torch.zeros(h, w, device=boxes.device)
    background = (foreground == 0).float()
    return tuple(m / m.sum().clamp_min(_EPS) for m in (foreground, background))


def attention_masks(maps: Tensor, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    """Where, and in which channels, a map is strong (FGD, Eq. 5 to 8).

    ``A^S = HW softmax(mean_c |F| / T)`` over places and ``A^C = C softmax(mean_hw |F| / T)`` over
    channels; the mean of either is 1.

    Args:
        maps (Tensor): ``[N, C, H, W]``.
        temperature (float): ``T > 0``. Defaults to 0.5.

    Returns:
        tuple[Tensor, Tensor]: ``[N, 1, H, W]`` and ``[N, C, 1, 1]``.
    """
    n, c, h, w = maps.shape
    size = at_least_float32(maps).abs()
    places = (size.mean(1).flatten(1) / temperature).softmax(1) * (h * w)
    channels = (size.mean((2, 3)) / temperature).softmax(1) * c
    return places.view(n, 1, h, w), channels.view(n, c, 1, 1)


def fgd_focal(
    student: Tensor,
    teacher: Tensor,
    foreground: Tensor,
    background: Tensor,
    temperature: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The focal part of FGD (Yang et al., CVPR 2022, Eq. 9 and 10), as means.

    ``sum_p w_p A^S_p mean_c A^C_c (F^t_pc - F^s_pc)^2``, a mean over images, with the weights of
    foreground, and with those of background; masks are the teacher's. It is in units of the
    teacher's energy, ``mean (F^t)^2``. The third is ``mean |A^S_t - A^S_s| + mean |A^C_t -
    A^C_s|``. Published are sums: see ``docs/heads.md`` for weights.

    Args:
        student (Tensor): ``[N, C, H, W]``.
        teacher (Tensor): The same shape; no gradient flows into it.
        foreground (Tensor): ``[N, H, W]``, of :func:`box_places`.
        background (Tensor): Likewise.
        temperature (float): Of the masks. Defaults to 0.5.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Foreground, background and attention; scalars. Without an
        object the first is 0 times the student's map.

    Raises:
        ValueError: On unequal shapes or a temperature that is not positive.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'Features of one shape can be compared, not {tuple(student.shape)} with '
            f'{tuple(teacher.shape)}; align the widths and resize the maps first.'
        )
    if temperature <= 0:
        raise ValueError(f'The temperature must be positive, not {temperature}.')
    f_s, f_t = at_least_float32(student), at_least_float32(teacher.detach())
    masks_s, masks_t = (attention_masks(f, temperature) for f in (f_s, f_t))
    energy = f_t.square().mean().clamp_min(_EPS)
    error = (masks_t[0] * masks_t[1] * (f_t - f_s).square()).mean(1) / energy
    focal = [(w.detach().to(error) * error).sum((1, 2)).mean() for w in (foreground, background)]
    attention = sum((s - t).abs().mean() for s, t in zip(masks_s, masks_t, strict=True))
    return *focal, attention
