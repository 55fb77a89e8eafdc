"""Relations between queries, keys and values (MiniViT)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .reduce import at_least_float32, weighted_mean


def split_qkv(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the usual joint projection.

    Args:
        qkv (Tensor): ``[..., 3 D]``: all queries, all keys, all values.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Each ``[..., D]``, heads side by side.

    Raises:
        ValueError: If the width is no multiple of 3.
    """
    if qkv.shape[-1] % 3:
        raise ValueError(f'{qkv.shape[-1]} channels are no queries, keys and values side by side.')
    return qkv.chunk(3, -1)


def qkv_relation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    relation_heads: int = 1,
    subtract_entropy: bool = False,
) -> Tensor:
    """Attention-like relations among queries, keys and values (MiniViT, Zhang et al., CVPR 2022).

    ``1/9 sum_{X, Y in {Q, K, V}} mean_rows CE(softmax(X^t Y^t^T / sqrt(d_t)), softmax(X^s Y^s^T /
    sqrt(d_s)))`` (papers.md Part 3.2, method 9). A row is a token of a relation head of an image;
    ``d`` is the width of a relation head. Published: one relation head and weight 1 of the mean
    over layer pairs; that rows are averaged is our reading.

    Args:
        student (Sequence[Tensor]): Queries, keys and values, each ``[B, N, D_s]``; windows count
            as images.
        teacher (Sequence[Tensor]): Likewise ``[B, N, D_t]``; no gradient flows into it. Tokens are
            those of the student: leave out prefix tokens that it has not.
        relation_heads (int): Parts into which both widths are cut. Defaults to 1.
        subtract_entropy (bool): Subtract the teacher's entropy: the same gradient, and zero at
            agreement. Defaults to False, as published.

    Returns:
        Tensor: Scalar; 0 times the student's values without rows.

    Raises:
        ValueError: If the two do not have three tensors of the same images and tokens each, or a
            width cannot be cut so.
    """
    _check(student, teacher, relation_heads)
    with torch.autocast(student[0].device.type, enabled=False):
        s = [_heads(x, relation_heads) for x in student]
        t = [_heads(x.detach(), relation_heads) for x in teacher]
        total = 0.0
        for i in range(3):
            for j in range(3):
                log_s, log_t = _relation(s[i], s[j]), _relation(t[i], t[j]).to(s[i])
                entropy = log_t if subtract_entropy else 0.0
                total = total + weighted_mean((log_t.exp() * (entropy - log_s)).sum(-1))
    return total / 9


def _heads(x: Tensor, heads: int) -> Tensor:
    """From ``[B, N, D]`` to ``[B, heads, N, d]``."""
    return at_least_float32(x).unflatten(-1, (heads, -1)).transpose(1, 2)


def _relation(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.transpose(-1, -2) / x.shape[-1] ** 0.5).log_softmax(-1)


def _check(student: Sequence[Tensor], teacher: Sequence[Tensor], heads: int) -> None:
    for who, parts in (('student', student), ('teacher', teacher)):
        shapes = [tuple(x.shape) for x in parts]
        if len(parts) != 3 or len(set(shapes)) != 1 or parts[0].dim() != 3:
            raise ValueError(
                f'qkv_relation needs queries, keys and values [B, N, D] of the {who}, not {shapes}.'
            )
        if heads < 1 or shapes[0][-1] % heads:
            raise ValueError(
                f"The {who}'s {shapes[0][-1]} channels cannot be cut into {heads} relation heads."
            )
    if student[0].shape[:2] != teacher[0].shape[:2]:
        raise ValueError(
            f'qkv_relation needs the same images and tokens of both, not '
            f'{tuple(student[0].shape[:2])} of the student and {tuple(teacher[0].shape[:2])} of '
            'the teacher: leave out prefix tokens that one of them has not.'
        )
