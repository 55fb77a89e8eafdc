"""Hard labels of a teacher that errs: a learned matrix of confusions."""

import torch
from torch import Tensor

from .reduce import at_least_float32, weighted_mean


def noise_matrix(scores: Tensor, accuracy: float | Tensor) -> Tensor:
    """Probability ``Q_ij`` that an image of class ``i`` is labelled ``j`` (papers.md Part 4.3).

    The diagonal is the teacher's accuracy; what it misses is shared out by a softmax of each row
    of scores (learned, zeros at the start: an even share, published with Adam at 1e-3).

    Args:
        scores (Tensor): ``[C, C - 1]``: row ``i`` in the order of the classes other than ``i``.
        accuracy (float | Tensor): In [0, 1]; one number or one for each class ``[C]``. Published:
            0.9665 (CIFAR-10), 0.7630 (CIFAR-100), 0.8118 (ImageNet).

    Returns:
        Tensor: ``[C, C]``; rows sum to 1, the identity for an accuracy of 1.

    Raises:
        ValueError: On scores of another shape, or an accuracy outside [0, 1].
    """
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] + 1 or scores.shape[0] < 2:
        raise ValueError(f'The scores of a noise matrix are [C, C - 1], not {tuple(scores.shape)}.')
    scores = at_least_float32(scores)
    classes = len(scores)
    accuracy = torch.as_tensor(accuracy, dtype=scores.dtype, device=scores.device).detach()
    if accuracy.shape not in ((), (classes,)) or not ((accuracy >= 0) & (accuracy <= 1)).all():
        raise ValueError(
            f'The accuracy is a share in [0, 1], one for all or one for each of {classes} classes.'
        )
    accuracy = accuracy.expand(classes)[:, None]
    shares = (1 - accuracy) * scores.softmax(1)
    eye = torch.eye(classes, dtype=torch.bool, device=scores.device)
    return (accuracy * eye).masked_scatter(~eye, shares)


def noise_adapted_nll(
    student_logits: Tensor, labels: Tensor, noise: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Likelihood of labels seen through a noise matrix (Attention Probe, ICASSP 2022; Part 4.3).

    ``-mean_b log sum_i softmax(z^s_b)_i Q_{i, y_b}``: the student may keep a class that the
    teacher takes for another. Published weight 1, a batch mean there as here.

    Args:
        student_logits (Tensor): ``[..., C]``.
        labels (Tensor): The teacher's first classes ``[...]``, integers.
        noise (Tensor): ``Q``, ``[C, C]`` of :func:`noise_matrix`, with gradient into its scores.
        weight (Tensor, optional): ``[...]``, for a weighted mean over the rows.

    Returns:
        Tensor: Scalar, not negative; the plain cross-entropy where ``Q`` is the identity. 0 times
        the student's logits without rows.

    Raises:
        ValueError: If the matrix or the labels do not fit the logits.
    """
    classes = student_logits.shape[-1]
    if noise.shape != (classes, classes):
        raise ValueError(
            f'The noise matrix is [{classes}, {classes}] for these logits, not '
            f'{tuple(noise.shape)}.'
        )
    if labels.shape != student_logits.shape[:-1] or labels.dtype.is_floating_point:
        raise ValueError(
            f'Labels are class indices {tuple(student_logits.shape[:-1])}, not {labels.dtype} '
            f'{tuple(labels.shape)}.'
        )
    log_s = at_least_float32(student_logits).log_softmax(-1)
    noise = at_least_float32(noise).to(log_s)
    # Zeros of a perfect teacher: no gradient through them instead of an infinite one.
    log_q = noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
    return weighted_mean(-torch.logsumexp(log_s + log_q.t()[labels.long()], -1), weight)
