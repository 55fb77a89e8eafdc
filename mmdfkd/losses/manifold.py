"""Fine-grained manifold distillation: cosine relations of patches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .gram import gram_distance
from .tokens import check_same_places, merge_patches, patch_tokens


class ManifoldTerms(NamedTuple):
    """The three parts of the decoupled loss, before their weights; scalars.

    Attributes:
        intra: Between the patches of an image.
        inter: Between images, patch position by patch position.
        random: Between patches drawn from the whole batch.
    """

    intra: Tensor
    inter: Tensor
    random: Tensor


def intra_image(student: Tensor, teacher: Tensor) -> Tensor:
    """Relations between the patches of each image (Hao et al., NeurIPS 2022; papers.md eq. 2.1).

    ``mean_b mean_ij (M(F^s_b) - M(F^t_b))_ij^2``. The paper's ``L_intra`` is ``N^2`` of it; the
    released code has this mean.

    Args:
        student (Tensor): ``[B, N, D_s]``.
        teacher (Tensor): ``[B, N, D_t]``; no gradient flows into it.

    Returns:
        Tensor: Scalar in [0, 4].

    Raises:
        ValueError: If images or tokens differ in number.
    """
    check_same_places(student, teacher)
    return gram_distance(student, teacher)


def inter_image(student: Tensor, teacher: Tensor) -> Tensor:
    """Relations between images at each position (Hao et al., NeurIPS 2022; papers.md eq. 2.1).

    ``mean_j mean_ab (M(F^s_:j) - M(F^t_:j))_ab^2``. The paper's ``L_inter`` is ``B^2`` of it. It
    sees the batch of one rank; an image has no relation to compare with but itself.

    Args:
        student (Tensor): ``[B, N, D_s]``.
        teacher (Tensor): ``[B, N, D_t]``; no gradient flows into it.

    Returns:
        Tensor: Scalar in [0, 4].

    Raises:
        ValueError: If images or tokens differ in number.
    """
    check_same_places(student, teacher)
    return gram_distance(student.transpose(0, 1), teacher.transpose(0, 1))


def random_sampled(
    student: Tensor,
    teacher: Tensor,
    num_samples: int = 192,
    indices: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Relations between patches drawn from the batch (Hao et al., NeurIPS 2022; papers.md eq. 2.1).

    ``mean_kl (M(F^s_r) - M(F^t_r))_kl^2`` over ``K`` of the ``B * N`` patches, the same ones of
    both networks. The paper's ``L_rand`` is ``K^2`` of it. Without replacement, as released.

    Args:
        student (Tensor): ``[B, N, D_s]``.
        teacher (Tensor): ``[B, N, D_t]``; no gradient flows into it.
        num_samples (int): ``K``; all patches where there are fewer. Defaults to 192, as released
            (for each GPU's batch, drawn anew for every layer).
        indices (Tensor, optional): The patches themselves, in 0 ... B * N - 1, instead of a draw.
        generator (torch.Generator, optional): Of the draw, on the CPU. Defaults to torch's own.

    Returns:
        Tensor: Scalar in [0, 4].

    Raises:
        ValueError: If images or tokens differ in number, or fewer than one is to be drawn.
    """
    check_same_places(student, teacher)
    if num_samples < 1:
        raise ValueError(f'num_samples must be 1 or more, not {num_samples}.')
    f_s, f_t = student.flatten(0, 1), teacher.flatten(0, 1)
    if indices is None:
        # Drawn on the CPU: the same patches on every kind of device.
        indices = torch.randperm(len(f_s), generator=generator)[:num_samples]
    indices = indices.to(f_s.device)
    return gram_distance(f_s[indices], f_t[indices])


def manifold_terms(
    student: Tensor,
    teacher: Tensor,
    num_samples: int = 192,
    prefix_tokens: tuple[int, int] = (0, 0),
    grids: Sequence[tuple[int, int]] | None = None,
    merged: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> ManifoldTerms:
    """The three terms of the decoupled manifold loss of one pair of layers.

    Each is invariant to a positive factor of any token, to zero channels and to a rotation of the
    channels, in either network: widths need not agree, and nothing is projected. Each is zero
    exactly where all the cosines that it compares agree.

    Args:
        student (Tensor): Output of a block, ``[B, P_s + N_s, D_s]``, or ``[B, H, W, D_s]``.
        teacher (Tensor): Its counterpart; no gradient flows into it.
        num_samples (int): See :func:`random_sampled`. Defaults to 192.
        prefix_tokens (tuple[int, int]): How many tokens of the student and of the teacher precede
            the patches; they are left out. The release drops the student's first ``N_s - N_t``,
            which keeps class tokens where both have one, and breaks where the teacher has more.
            Defaults to none.
        grids (Sequence[tuple[int, int]], optional): ``(H, W)`` of the student and of the teacher;
            needed to merge.
        merged (tuple[int, int], optional): Grid to which both are merged
            (:func:`~mmdfkd.losses.tokens.merge_patches`): for large maps, whose relations are
            quadratic in their size, and for unequal grids. None merges nothing, as released.
        generator (torch.Generator, optional): See :func:`random_sampled`.

    Returns:
        ManifoldTerms: Scalars.

    Raises:
        ValueError: On tokens that cannot be brought to the same places.
    """
    patches = [
        patch_tokens(x, prefix, who)
        for x, prefix, who in zip(
            (student, teacher), prefix_tokens, ('student', 'teacher'), strict=True
        )
    ]
    if merged is not None:
        if grids is None or len(grids) != 2:
            raise ValueError('To merge patches, grids=(student, teacher) must be given.')
        patches = [merge_patches(x, grid, merged) for x, grid in zip(patches, grids, strict=True)]
    return ManifoldTerms(
        intra_image(*patches),
        inter_image(*patches),
        random_sampled(*patches, num_samples=num_samples, generator=generator),
    )


def manifold(
    student: Tensor,
    teacher: Tensor,
    intra_weight: float = 4.0,
    inter_weight: float = 0.1,
    random_weight: float = 0.2,
    **kwargs,
) -> Tensor:
    """Fine-grained manifold distillation of one pair of layers (Hao et al., NeurIPS 2022).

    ``a L_intra + b L_inter + c L_rand`` (papers.md eq. 2.1), each a mean over pairs as in the
    released code, so the published weights carry over as they are: 4, 0.1, 0.2 for CaiT-S24 to
    DeiT-Tiny, with the **mean** over layer pairs weighted 1 beside ``batchmean`` KL of weight 1.

    Args:
        student (Tensor): See :func:`manifold_terms`.
        teacher (Tensor): See :func:`manifold_terms`.
        intra_weight (float): ``a``. Defaults to 4.
        inter_weight (float): ``b``. Defaults to 0.1.
        random_weight (float): ``c``. Defaults to 0.2.
        **kwargs: Of :func:`manifold_terms`.

    Returns:
        Tensor: Scalar.
    """
    terms = manifold_terms(student, teacher, **kwargs)
    return intra_weight * terms.intra + inter_weight * terms.inter + random_weight * terms.random
