"""Cross-entropy with a label: given, or the teacher's first class."""

import torch.nn.functional as F
from torch import Tensor

from .checks import check_logits, labels_or_first
from .reduce import at_least_float32, weighted_mean


def label_cross_entropy(
    logits: Tensor, labels: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy, a mean over rows: ``mean_b sum_c -y_bc log softmax(z_b)_c``.

    Args:
        logits (Tensor): ``[..., C]``.
        labels (Tensor): Class indices ``[...]``, or probabilities ``[..., C]`` (mixup).
        weight (Tensor, optional): ``[...]``, for a weighted mean over the rows.
        label_smoothing (float): Share of the label that is spread over all classes. Defaults to 0.

    Returns:
        Tensor: Scalar; 0 times the logits without rows.
    """
    z = at_least_float32(logits).flatten(0, -2)
    if labels.dtype.is_floating_point:
        labels = labels.detach().to(z).reshape(z.shape)
    else:
        labels = labels.reshape(-1)
    rows = F.cross_entropy(z, labels, reduction='none', label_smoothing=label_smoothing)
    return weighted_mean(rows, None if weight is None else weight.reshape(-1))


def hard_label(
    student_logits: Tensor,
    teacher_logits: Tensor,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The teacher's decision as the label: ``CE(z^s, argmax z^t)`` (DeiT, Touvron et al., ICML'21).

    The hard distillation term of ``research/papers.md`` Part 3, row 1. Published weight 1/2 beside
    1/2 for the true label; both are means over the batch, so it carries over as it is.

    Args:
        student_logits (Tensor): ``[..., C]``.
        teacher_logits (Tensor): ``[..., C]``; no gradient flows into it.
        weight (Tensor, optional): ``[...]``, for a weighted mean over the rows.
        label_smoothing (float): Share of the label that is spread over all classes. Defaults to 0.

    Returns:
        Tensor: Scalar; unlike a divergence it is not zero where the two agree.

    Raises:
        ValueError: On unequal shapes.
    """
    check_logits(student_logits, teacher_logits)
    labels = labels_or_first(None, teacher_logits)
    return label_cross_entropy(student_logits, labels, weight, label_smoothing)
