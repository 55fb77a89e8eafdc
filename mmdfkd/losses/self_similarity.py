"""Which tokens of an image resemble each other."""

import torch
from torch import Tensor

from .gram import cosine_gram
from .kl import kl_divergence
from .tokens import check_same_places


def token_self_similarity(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 0.07,
    include_self: bool = False,
) -> Tensor:
    """Divergence of each token's similarities to the others of its image.

    ``mean_bi KL(softmax_j(c^t_ij / T) || softmax_j(c^s_ij / T))`` with cosines ``c``: the local
    loss of Lightly Train's distillation v3 (2026; detection_style.md Part 1.2), its temperature,
    and no ``T^2``, which would shrink it to 1/200. Ours: a token's similarity to itself, always 1,
    is left out, since at this temperature it would hide the others. Invariant to a positive factor
    of any token and to a rotation of the channels.

    Args:
        student (Tensor): ``[B, N, D_s]``.
        teacher (Tensor): ``[B, N, D_t]``; no gradient flows into it.
        temperature (float): ``T > 0``. Defaults to 0.07.
        include_self (bool): Keep each token's similarity to itself. Defaults to False.

    Returns:
        Tensor: Scalar, zero where all cosines agree.

    Raises:
        ValueError: If images or tokens differ in number, there are fewer than two tokens, or the
            temperature is not positive.
    """
    check_same_places(student, teacher)
    tokens = student.shape[1]
    if tokens < 2:
        raise ValueError(f'Self-similarity needs two tokens or more, not {tokens}.')
    c_s, c_t = cosine_gram(student), cosine_gram(teacher.detach())
    c_t = c_t.to(c_s)
    if not include_self:
        others = ~torch.eye(tokens, dtype=torch.bool, device=c_s.device)
        c_s, c_t = (c[:, others].view(-1, tokens, tokens - 1) for c in (c_s, c_t))
    return kl_divergence(c_s, c_t, temperature) / temperature**2
