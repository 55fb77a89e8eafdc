"""A convolutional student in the attention space of its ViT teacher."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .mimic import masked_mimic
from .reduce import at_least_float32


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` of ``[..., N, d]``."""
    return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1) @ value


def partially_cross_attention(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    replaced: Sequence[Tensor],
    normalize: bool = False,
) -> Tensor:
    """Projector loss of cross-architecture distillation (Liu et al., ACCV 2022).

    ``mean (Attn_T - PCAttn_S)^2 + mean (V_T V_T^T / sqrt(d) - V_S V_S^T / sqrt(d))^2``, with
    ``Attn = softmax(Q K^T / sqrt(d)) V`` and ``PCAttn`` the same of the student's matrices after
    some of their entries gave way to the teacher's; papers.md 3.2, row 8 (``L_proj1``). Published:
    half of the entries, by chance, and weight 1 of squared norms, whose reduction is not known;
    here both terms are means.

    Args:
        student (Sequence[Tensor]): Query, key and value, ``[..., N, d]`` each, projected to the
            teacher's width.
        teacher (Sequence[Tensor]): Likewise; no gradient flows into them.
        replaced (Sequence[Tensor]): For each, a mask of the same shape, True where the teacher's
            entry stands in.
        normalize (bool): Each term in units of the teacher's energy. Defaults to False.

    Returns:
        Tensor: Scalar, zero at agreement whatever is replaced.

    Raises:
        ValueError: On unequal shapes, or other than three of each.
    """
    shapes = {tuple(x.shape) for x in (*student, *teacher, *replaced)}
    if not len(student) == len(teacher) == len(replaced) == 3 or len(shapes) != 1:
        raise ValueError(
            'Partially cross attention takes query, key and value [..., N, d] of the student, the '
            f'teacher and masks of what is replaced, all of one shape, not {sorted(shapes)}.'
        )
    own = [at_least_float32(x) for x in student]
    other = [at_least_float32(x.detach()).to(own[0]) for x in teacher]
    mixed = [torch.where(m.bool(), t, s) for s, t, m in zip(own, other, replaced, strict=True)]
    with torch.autocast(own[0].device.type, enabled=False):
        relation_s, relation_t = (
            v @ v.transpose(-2, -1) * v.shape[-1] ** -0.5 for v in (own[2], other[2])
        )
        attention = masked_mimic(attend(*mixed), attend(*other), dim=-1, normalize=normalize)
    return attention + masked_mimic(relation_s, relation_t, dim=-1, normalize=normalize)


def discriminator_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """``-mean log D(h_T) - mean log(1 - D(h_S))``, ``D`` the sigmoid of logits of any shape.

    The discriminator's side of multi-view training (``L_D``; papers.md 3.2, row 8).
    """
    real, fake = at_least_float32(teacher_logits), at_least_float32(student_logits)
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def deceiver_loss(student_logits: Tensor) -> Tensor:
    """``mean log(1 - D(h_S))``: the student's side (``L_MVG``; papers.md 3.2, row 8); negative."""
    return -F.softplus(at_least_float32(student_logits)).mean()
