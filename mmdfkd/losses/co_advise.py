"""Teachers of different inductive bias, each with a head of its own."""

from collections.abc import Sequence

from torch import Tensor

from .checks import check_logits, labels_or_first
from .hard_label import label_cross_entropy
from .kl import kl_divergence


def co_advise(
    class_logits: Tensor,
    advised_logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    labels: Tensor | None = None,
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    class_weight: float = 1.0,
) -> Tensor:
    """Cross inductive bias distillation (Co-advise, Ren et al., CVPR 2022; papers.md Part 3.2).

    ``l_0 CE(z, y) + sum_i l_i T_i^2 mean_b KL(softmax(z^{t_i} / T_i) || softmax(z_i / T_i))``:
    each teacher (published: a convolutional and an involutional one) speaks to a token's head of
    its own. Published: all weights and temperatures 1, batch means, as here.

    Args:
        class_logits (Tensor): Head of the class token, ``[B, C]``.
        advised_logits (Sequence[Tensor]): A head for each teacher, each ``[B, C]``.
        teacher_logits (Sequence[Tensor]): The teachers' answers, each ``[B, C]``; no gradient flows
            into them.
        labels (Tensor, optional): Classes ``[B]`` or probabilities ``[B, C]``. Defaults to the
            class of the highest mean probability of the teachers (ours, for images without label).
        weights (Sequence[float], optional): ``l_i``. Defaults to 1 each.
        temperatures (Sequence[float], optional): ``T_i > 0``. Defaults to 1 each.
        class_weight (float): ``l_0``. Defaults to 1.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: If heads, teachers, weights and temperatures are not as many of each, or
            shapes differ.
    """
    count = len(teacher_logits)
    weights = (1.0,) * count if weights is None else tuple(weights)
    temperatures = (1.0,) * count if temperatures is None else tuple(temperatures)
    if not count or not count == len(advised_logits) == len(weights) == len(temperatures):
        raise ValueError(
            f'{count} teachers need as many heads, weights and temperatures, not '
            f'{len(advised_logits)}, {len(weights)} and {len(temperatures)}.'
        )
    check_logits(class_logits, teacher_logits[0])
    if labels is None:
        labels = sum(z.detach().float().softmax(-1) for z in teacher_logits).argmax(-1)
    total = class_weight * label_cross_entropy(
        class_logits, labels_or_first(labels, teacher_logits[0])
    )
    for own, other, weight, temperature in zip(
        advised_logits, teacher_logits, weights, temperatures, strict=True
    ):
        total = total + weight * kl_divergence(own, other, temperature)
    return total
