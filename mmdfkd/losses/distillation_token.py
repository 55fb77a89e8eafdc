"""A second classifier head that listens to the teacher."""

from torch import Tensor

from .checks import check_logits, labels_or_first
from .hard_label import hard_label, label_cross_entropy
from .kl import kl_divergence


def distillation_token(
    class_logits: Tensor,
    token_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    mode: str = 'hard',
    alpha: float = 0.5,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """DeiT's loss of two heads (Touvron et al., ICML 2021; papers.md Part 3.2, method 1).

    ``(1 - alpha) CE(z_cls, y) + alpha L_d(z_dist, z^t)``; hard: ``L_d = CE(z_dist, argmax z^t)``,
    soft: ``L_d = T^2 mean_b KL(softmax(z^t / T) || softmax(z_dist / T))``. DeiT's release divides
    the soft term by ``B * C`` instead of ``B``: its weight ``alpha`` is ``alpha / C`` of ours.

    Args:
        class_logits (Tensor): Head of the class token, ``[B, C]``.
        token_logits (Tensor): Head of the distillation token, ``[B, C]``.
        teacher_logits (Tensor): ``[B, C]``; no gradient flows into it.
        labels (Tensor, optional): Classes ``[B]`` or probabilities ``[B, C]``. Defaults to the
            teacher's first class, for images without a label.
        mode (str): ``'hard'`` or ``'soft'``. Defaults to ``'hard'``.
        alpha (float): In [0, 1]. Defaults to 0.5, as published.
        temperature (float): ``T > 0``, of the soft mode. Defaults to 1, as released.
        label_smoothing (float): Of the class head's term. Defaults to 0.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: On unequal shapes, an unknown mode or an ``alpha`` outside [0, 1].
    """
    if mode not in ('hard', 'soft'):
        raise ValueError(f"mode must be 'hard' or 'soft', not {mode!r}.")
    if not 0 <= alpha <= 1:
        raise ValueError(f'alpha must be in [0, 1], not {alpha}.')
    check_logits(class_logits, teacher_logits)
    labels = labels_or_first(labels, teacher_logits)
    own = label_cross_entropy(class_logits, labels, label_smoothing=label_smoothing)
    if mode == 'hard':
        token = hard_label(token_logits, teacher_logits)
    else:
        token = kl_divergence(token_logits, teacher_logits, temperature)
    return (1 - alpha) * own + alpha * token
