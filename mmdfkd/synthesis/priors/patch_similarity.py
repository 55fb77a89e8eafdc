import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .attention_base import AttentionTerm
from .attention_reading import mean_head_output
from .context import SynthesisContext

_FORMS = ('gaussian', 'kde')
#: Least variance of the cosines that counts, so that equal patches have a gradient.
_LEAST_VARIANCE = 1e-6


@MODELS.register_module()
class PatchSimilarityPrior(AttentionTerm):
    """Patches are to differ in what they resemble: the entropy of their similarities.

    Of each block, the cosines between the patches' attention outputs, averaged over heads, have a
    distribution; its negative differential entropy in nats, averaged over the blocks, is the term.
    Noise has narrow ones, images of things wide ones (PSAQ-ViT, Li et al., ECCV 2022).

    * ``'gaussian'``: ``-log(2 pi e V) / 2`` with the variance ``V`` of the cosines, as MaskAQ does
      (2026, there of 64 random patches). Exact here from a ``d`` by ``d`` matrix.
    * ``'kde'``: the published estimate, a Gaussian kernel of deviation 0.01 at ten points and the
      rule of trapezoids. Their range is that of the image here, of the whole batch in the release,
      whose values therefore depend on the other images. ``O(N^2)`` numbers at each point.

    Args:
        weight (float): Factor of the term in the objective. PSAQ-ViT's 1 is for the sum over the
            blocks.
        form (str): As above.
        from_depth (float): Blocks at or behind this share of the depth are looked at, in [0, 1].

    Raises:
        ValueError: On an unknown form, or a depth that is no share.
    """

    name = 'patch_similarity'

    def __init__(
        self, weight: float = 1.0, form: str = 'gaussian', from_depth: float = 0.0
    ) -> None:
        super().__init__(weight, from_depth)
        if form not in _FORMS:
            raise ValueError(f'PatchSimilarityPrior: form must be one of {_FORMS}, not {form!r}.')
        self.form = form

    def taps(self, teacher: Adapter) -> tuple[str, ...]:
        """The heads' outputs."""
        return tuple(layer.heads_out for layer in self.layers(teacher))

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``."""
        entropy = gaussian_entropy if self.form == 'gaussian' else kde_entropy
        found = [entropy(mean_head_output(ctx, layer)) for layer in self._layers(ctx)]
        return -sum(found) / len(found)


def gaussian_entropy(tokens: Tensor) -> Tensor:
    """Entropy of a Gaussian of the variance that the tokens' cosines have.

    With unit rows ``U``, the mean of the cosines is ``|sum_i u_i|^2 / N^2`` and that of their
    squares ``|U^T U|^2 / N^2``: no matrix of all pairs is made. Each token's cosine to itself is
    among them, as published.

    Args:
        tokens (Tensor): ``[B, N, d]``.

    Returns:
        Tensor: ``[B]`` in nats; blind to the tokens' lengths and to rotations.
    """
    unit = F.normalize(at_least_float32(tokens), dim=-1, eps=1e-6)
    with torch.autocast(unit.device.type, enabled=False):
        # Of the two products that have the same norm, the smaller.
        few = unit.shape[1] < unit.shape[2]
        gram = unit @ unit.transpose(1, 2) if few else unit.transpose(1, 2) @ unit
    pairs = unit.shape[1] ** 2
    mean = unit.sum(1).square().sum(-1) / pairs
    variance = (gram.square().sum((1, 2)) / pairs - mean.square()).clamp_min(0)
    return 0.5 * (2 * math.pi * math.e * (variance + _LEAST_VARIANCE)).log()


def kde_entropy(tokens: Tensor, bandwidth: float = 0.01, points: int = 10) -> Tensor:
    """Entropy of the tokens' cosines, by a kernel density estimate.

    ``-trapz(f log f)`` of ``f(t) + 1e-4`` at ``points`` places from the least to the largest cosine
    of the image, which are constants of the optimisation.

    Args:
        tokens (Tensor): ``[B, N, d]``.
        bandwidth (float): Deviation of the kernel.
        points (int): Number of places.

    Returns:
        Tensor: ``[B]`` in nats.
    """
    unit = F.normalize(at_least_float32(tokens), dim=-1, eps=1e-6)
    with torch.autocast(unit.device.type, enabled=False):
        cosines = (unit @ unit.transpose(1, 2)).flatten(1)
    low, high = cosines.detach().aminmax(dim=1)
    steps = torch.linspace(0, 1, points, dtype=cosines.dtype, device=cosines.device)
    places = low[:, None] + (high - low)[:, None] * steps
    factor = 1 / (bandwidth * math.sqrt(2 * math.pi))
    # Place by place: all at once would hold ten times the pairs, twice.
    density = torch.stack(
        [
            (-((place[:, None] - cosines) ** 2) / (2 * bandwidth**2)).exp().mean(1) * factor
            for place in places.unbind(1)
        ],
        1,
    )
    density = density + 1e-4
    return torch.trapezoid(-density * density.log(), places, dim=1)
