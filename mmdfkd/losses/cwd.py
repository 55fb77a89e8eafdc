"""Channel-wise distillation."""

from torch import Tensor

from .kl import kl_divergence
from .pkd import standardize as z_score
from .reduce import at_least_float32


def cwd(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, standardize: bool = False
) -> Tensor:
    """Each channel as a distribution over places (CWD, Shu et al., ICCV 2021).

    ``(T^2 / (N C)) sum_nc KL(softmax_hw(F^T / T) || softmax_hw(F^S / T))``, published for detectors
    with temperature 1 and weight 1, as here; MMRazor's configs weigh each level with 10. Blind to
    an offset of each channel; with ``standardize``, as RTMDet's variant, also to its scale.

    Args:
        student (Tensor): ``[N, C, H, W]``.
        teacher (Tensor): The same shape; no gradient flows into it.
        temperature (float): ``T > 0``. Defaults to 1.
        standardize (bool): First bring each channel to zero mean and unit variance over the batch,
            as a BatchNorm without affine and running statistics; a thousandth of the channels' mean
            variance is added to each, as in :func:`~mmdfkd.losses.pkd`. Defaults to False.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: On unequal shapes or a temperature that is not positive.
    """
    if student.dim() != 4 or student.shape != teacher.shape:
        raise ValueError(
            f'cwd compares maps [N, C, H, W] of one shape, not {tuple(student.shape)} with '
            f'{tuple(teacher.shape)}; align the widths and resize the maps first.'
        )
    f_s, f_t = at_least_float32(student), at_least_float32(teacher.detach())
    if standardize and f_s.numel():
        f_s, f_t = z_score(f_s, 1e-3), z_score(f_t, 1e-3)
    return kl_divergence(f_s.flatten(2), f_t.flatten(2), temperature)
