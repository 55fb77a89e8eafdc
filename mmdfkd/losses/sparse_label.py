"""Stored labels of which only the largest entries are kept."""

from typing import NamedTuple

import torch
from torch import Tensor

from .reduce import at_least_float32, weighted_mean


class SparseLabels(NamedTuple):
    """The K largest probabilities of each row.

    Attributes:
        classes: Class indices, ``[..., K]``.
        probabilities: Theirs, ``[..., K]``, in descending order.
    """

    classes: Tensor
    probabilities: Tensor


def top_k_labels(logits: Tensor, k: int) -> SparseLabels:
    """What is stored of a teacher's answer: its ``k`` most probable classes.

    Args:
        logits (Tensor): ``[..., C]``.
        k (int): At least 1; ``C`` at most.

    Returns:
        SparseLabels: Classes (int64) and probabilities (float32 at least), without gradient.

    Raises:
        ValueError: If ``k`` is out of range.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f'k must be in 1 ... {logits.shape[-1]}, the number of classes, not {k}.')
    top = at_least_float32(logits.detach()).softmax(-1).topk(k, -1)
    return SparseLabels(top.indices, top.values)


def dense_labels(labels: SparseLabels, num_classes: int) -> Tensor:
    """The whole distribution: what is missing to 1 is spread evenly over the classes not kept.

    Args:
        labels (SparseLabels): Of any integer and floating point type.
        num_classes (int): ``C``.

    Returns:
        Tensor: ``[..., C]``; rows sum to 1 as far as the stored probabilities allow.

    Raises:
        ValueError: If more classes are kept than there are.
    """
    classes, probabilities = _checked(labels, num_classes)
    spread = _spread(probabilities, num_classes)
    dense = spread.expand(*spread.shape[:-1], num_classes).clone()
    return dense.scatter(-1, classes, probabilities)


def sparse_label_ce(
    student_logits: Tensor, labels: SparseLabels, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy with stored sparse labels (TinyViT, Wu et al., ECCV 2022; papers.md Part 3.5).

    ``-mean_b sum_c y_bc log softmax(z^s_b)_c`` with ``y_c = p_c`` for a kept class and
    ``(1 - sum_kept p) / (C - K)`` elsewhere, without ever building ``y``. Published: K = 100 for
    ImageNet-22k, weight 1 and no other term; a batch mean there as here.

    Args:
        student_logits (Tensor): ``[..., C]``.
        labels (SparseLabels): Leading dimensions as the logits'; int16 and float16 will do.
        weight (Tensor, optional): ``[...]``, for a weighted mean over the rows.

    Returns:
        Tensor: Scalar; the labels' entropy at agreement, not zero. 0 times the student's logits
        without rows.

    Raises:
        ValueError: If rows do not pair, or more classes are kept than there are.
    """
    classes, probabilities = _checked(labels, student_logits.shape[-1])
    if classes.shape[:-1] != student_logits.shape[:-1]:
        raise ValueError(
            f'Labels {tuple(classes.shape)} and logits {tuple(student_logits.shape)} must have the '
            'same rows: one stored label for each image, in its order.'
        )
    log_s = at_least_float32(student_logits).log_softmax(-1)
    probabilities = probabilities.to(log_s)
    spread = _spread(probabilities, log_s.shape[-1])
    kept = ((probabilities - spread) * log_s.gather(-1, classes)).sum(-1)
    return weighted_mean(-kept - spread[..., 0] * log_s.sum(-1), weight)


def _checked(labels: SparseLabels, num_classes: int) -> SparseLabels:
    classes, probabilities = labels
    if classes.shape != probabilities.shape or not 1 <= classes.shape[-1] <= num_classes:
        raise ValueError(
            f'Sparse labels are classes and probabilities [..., K] with K in 1 ... {num_classes}, '
            f'not {tuple(classes.shape)} and {tuple(probabilities.shape)}.'
        )
    return SparseLabels(classes.long(), at_least_float32(probabilities.detach()))


def _spread(probabilities: Tensor, num_classes: int) -> Tensor:
    """Share of each class not kept, ``[..., 1]``; stored halves may sum to slightly over 1."""
    missing = (1 - probabilities.sum(-1, keepdim=True)).clamp_min(0)
    others = num_classes - probabilities.shape[-1]
    return missing / others if others else torch.zeros_like(missing)
