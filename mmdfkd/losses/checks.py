"""What the response losses ask of their inputs, in one wording."""

import torch
from torch import Tensor


def check_logits(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> None:
    """Both networks have to answer about the same things, at a positive temperature.

    Args:
        student_logits (Tensor): Any shape.
        teacher_logits (Tensor): Must have the same shape.
        temperature (float): Must be positive. Defaults to 1.

    Raises:
        ValueError: Otherwise.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"The student's logits {tuple(student_logits.shape)} and the teacher's "
            f'{tuple(teacher_logits.shape)} must have one shape: same classes (or anchors), same '
            'places.'
        )
    if temperature <= 0:
        raise ValueError(f'The temperature must be positive, not {temperature}.')


def labels_or_first(labels: Tensor | None, teacher_logits: Tensor) -> Tensor:
    """The labels, or the teacher's first class where there are none.

    Args:
        labels (Tensor, optional): Class indices ``[...]`` or probabilities ``[..., C]``.
        teacher_logits (Tensor): ``[..., C]``.

    Returns:
        Tensor: ``labels``, indices as int64; or ``argmax`` of the teacher, ``[...]``.

    Raises:
        ValueError: If the labels are neither indices nor probabilities for these rows.
    """
    if labels is None:
        return teacher_logits.detach().argmax(-1)
    rows = teacher_logits.shape[:-1]
    if labels.shape == rows and not labels.dtype.is_floating_point:
        return labels.to(torch.long)
    if labels.shape == teacher_logits.shape and labels.dtype.is_floating_point:
        return labels
    raise ValueError(
        f'Labels are class indices {tuple(rows)} or probabilities {tuple(teacher_logits.shape)}, '
        f'not {labels.dtype} {tuple(labels.shape)}.'
    )


def index_labels(labels: Tensor | None, teacher_logits: Tensor, who: str) -> Tensor:
    """Like :func:`labels_or_first` for a loss that needs one target class a row.

    Args:
        labels (Tensor, optional): Class indices ``[...]``.
        teacher_logits (Tensor): ``[..., C]`` with two classes or more.
        who (str): Name of the loss, for the message.

    Returns:
        Tensor: Class indices ``[...]``, int64.

    Raises:
        ValueError: On soft labels, or fewer than two classes.
    """
    if teacher_logits.dim() == 0 or teacher_logits.shape[-1] < 2:
        raise ValueError(
            f'{who} parts a target class from the others: it needs logits [..., C] of two classes '
            f'or more, not {tuple(teacher_logits.shape)}.'
        )
    labels = labels_or_first(labels, teacher_logits)
    if labels.dtype.is_floating_point:
        raise ValueError(
            f'{who} needs one target class a row, not probabilities {tuple(labels.shape)}: pass '
            'class indices, or None for the first class of the teacher.'
        )
    return labels
