"""Attention, head by head."""

from torch import Tensor

from .reduce import at_least_float32, weighted_mean

DISTANCES = ('ssim', 'kl')
# Wang et al. (2004) for values of range 1.
_C1, _C2 = 0.01**2, 0.03**2


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of two rows, one window (Wang et al., TIP 2004, eq. 13).

    ``(2 m_a m_b + c_1) (2 s_ab + c_2) / ((m_a^2 + m_b^2 + c_1) (s_a^2 + s_b^2 + c_2))`` with biased
    moments over the last dimension, ``c_1 = 1e-4``, ``c_2 = 9e-4``.

    Args:
        first (Tensor): ``[..., L]``.
        second (Tensor): The same shape.

    Returns:
        Tensor: ``[...]``, symmetric, 1 where both agree.
    """
    m_a, m_b = first.mean(-1, keepdim=True), second.mean(-1, keepdim=True)
    a, b = first - m_a, second - m_b
    covariance, spread = (a * b).mean(-1), (a.square() + b.square()).mean(-1)
    m_a, m_b = m_a.squeeze(-1), m_b.squeeze(-1)
    level = (2 * m_a * m_b + _C1) / (m_a.square() + m_b.square() + _C1)
    return level * (2 * covariance + _C2) / (spread + _C2)


def head_attention(student: Tensor, teacher: Tensor, distance: str = 'ssim') -> Tensor:
    """Each head attends as its counterpart in the teacher.

    * ``'ssim'``: ``mean_bhr (1 - ssim(L a^T, L a^S))``, after MimiQ (2024; published weight 10,
      there between the heads' outputs). Rows are taken in units of uniform attention, so that the
      constants of :func:`ssim` mean the same at any resolution (ours).
    * ``'kl'``: ``mean_bhr sum_j a^T (log a^T - log a^S)``.

    Only for the same heads in the same order: of an inherited student with fewer heads, those of
    the teacher's that it kept. Otherwise
    :func:`~mmdfkd.losses.attention_consistency.attention_consistency` compares means over heads.

    Args:
        student (Tensor): Attention rows ``[B, h, R, L]`` (every row sums to 1).
        teacher (Tensor): The same shape; no gradient flows into it.
        distance (str): ``'ssim'`` or ``'kl'``. Defaults to ``'ssim'``.

    Returns:
        Tensor: Scalar, zero at agreement.

    Raises:
        ValueError: On an unknown distance or unequal shapes.
    """
    if distance not in DISTANCES:
        raise ValueError(f'distance must be one of {DISTANCES}, not {distance!r}.')
    if student.dim() != 4 or student.shape != teacher.shape:
        raise ValueError(
            'Head by head, attention rows are [B, heads, R, L] on both sides, not '
            f'{tuple(student.shape)} and {tuple(teacher.shape)}: for other numbers of heads use '
            'attention_consistency.'
        )
    a_s, a_t = at_least_float32(student), at_least_float32(teacher.detach())
    if distance == 'ssim':
        length = a_s.shape[-1]
        return weighted_mean(1 - ssim(length * a_s, length * a_t))
    log_s, log_t = a_s.clamp_min(1e-12).log(), a_t.clamp_min(1e-12).log()
    return weighted_mean((a_t * (log_t - log_s)).sum(-1))
