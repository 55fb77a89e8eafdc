"""Feature imitation up to the scale and the offset of each channel."""

from torch import Tensor

from .reduce import at_least_float32

_VARIANCE_FLOOR = 1e-6  # only for features that do not vary at all, in any channel


def standardize(x: Tensor, eps: float) -> Tensor:
    """Z-score of each channel of ``[N, C, H, W]`` over ``(N, H, W)``; ``eps`` as in :func:`pkd`."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    variance = centred.square().mean((0, 2, 3), keepdim=True)
    return centred / (variance + eps * variance.mean() + _VARIANCE_FLOOR).sqrt()


def pkd(student: Tensor, teacher: Tensor, eps: float = 1e-3) -> Tensor:
    """One minus Pearson's correlation, ``mean((z(F^s) - z(F^t))^2) / 2`` (PKD, Cao et al., 2022).

    ``z`` standardises each channel over batch and positions with the biased variance, so the loss
    depends on neither network's scale, nor on how often the batch is repeated. It does see the
    batch: its statistics are those of the images at hand (of one rank). The scale of a channel
    among the others is free up to ``eps``, which is a share of what all of them vary.

    Args:
        student (Tensor): ``[N, C, H, W]``.
        teacher (Tensor): ``[N, C, H, W]``; no gradient flows into it.
        eps (float): Added to the variance of a channel, as a share of the mean variance over
            channels. On synthetic batches of little diversity some channels are constant; with the
            absolute 1e-6 of the original their rounding noise would be blown up to unit variance.
            Defaults to 1e-3.

    Returns:
        Tensor: Scalar in [0, 2], up to ``eps``.

    Raises:
        ValueError: On unequal shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f'pkd compares maps of one shape, not {tuple(student.shape)} with '
            f'{tuple(teacher.shape)}.'
        )
    if student.numel() == 0:
        return student.sum()
    z_s = standardize(at_least_float32(student), eps)
    z_t = standardize(at_least_float32(teacher.detach()), eps)
    return (z_s - z_t).square().mean() / 2
