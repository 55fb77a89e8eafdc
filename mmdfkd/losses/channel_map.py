"""Mimicry in the channels that a student inherited."""

import torch
from torch import Tensor

from .mimic import masked_mimic


def to_student_channels(read: Tensor) -> Tensor:
    """The map from the teacher's channels to the student's, ``[d, D]``.

    Args:
        read (Tensor): ``[D, d]`` of ``InheritanceReport.maps``: the student's channels times it
            approximate the teacher's. Or the indices ``[d]`` of the kept channels: these then need
            no map.

    Returns:
        Tensor: Its pseudo-inverse in float64 (the transpose, where the columns are orthonormal), or
        the indices as they are.

    Raises:
        ValueError: If it is neither.
    """
    if read.dim() == 1 and not read.dtype.is_floating_point:
        return read
    if read.dim() != 2 or read.shape[0] < read.shape[1]:
        raise ValueError(
            'A channel map is [D, d] with d <= D, or the indices [d] of kept channels, not '
            f'{read.dtype} {tuple(read.shape)}.'
        )
    return torch.linalg.pinv(read.double())


def channel_map_mimic(
    student: Tensor,
    teacher: Tensor,
    to_student: Tensor,
    mask: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """A student that was cut out of its teacher keeps to the channels it was cut from (ours).

    ``mean_pc (F^S_pc - (W F^T_p)_c)^2`` with the known map ``W`` of the inheritance in place of a
    trained projector: nothing to learn, and the part of the teacher that the student has no room
    for is not asked of it. Normalised, in units of the kept energy ``mean (W F^T)^2``.

    Args:
        student (Tensor): ``[..., d]``.
        teacher (Tensor): ``[..., D]``; no gradient flows into it.
        to_student (Tensor): ``W`` as ``[d, D]``, or the indices ``[d]`` of the kept channels; see
            :func:`to_student_channels`.
        mask (Tensor, optional): Non-negative weight of each place, ``[..., 1]``.
        normalize (bool): See above. Defaults to True.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: If the map does not lead from the teacher's width to the student's.
    """
    width_s, width_t = student.shape[-1], teacher.shape[-1]
    chosen = to_student.dim() == 1
    if chosen:
        fits = len(to_student) == width_s and bool((to_student < width_t).all())
    else:
        fits = tuple(to_student.shape) == (width_s, width_t)
    if not fits:
        raise ValueError(
            f'The channel map {tuple(to_student.shape)} does not lead from the {width_t} channels '
            f'of the teacher to the {width_s} of the student: it is of another inheritance or '
            'another place (stream, pyramid).'
        )
    teacher = teacher.detach()
    if chosen:
        kept = teacher[..., to_student.to(teacher.device)]
    else:
        dtype = torch.promote_types(teacher.dtype, torch.float32)
        with torch.autocast(teacher.device.type, enabled=False):
            kept = teacher.to(dtype) @ to_student.to(teacher.device, dtype).t()
    return masked_mimic(student, kept, mask, dim=-1, normalize=normalize)
