from collections.abc import Sequence

import torch
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext
from .parts import attention_layers, batch_norms
from .ranks import summed_over_ranks


@MODELS.register_module()
class BatchNormPrior(Prior):
    """What enters the teacher's batch norms is to have the statistics of its training data.

    Of each layer, with the stored mean and deviation ``m, s`` of each channel and those of the
    batch ``m', s'``: ``sqrt(mean_c ((m' - m)^2 + (s' - s)^2) / (s^2 + e))``, the Wasserstein
    distance of two Gaussians in units of the stored deviation, ``e`` a hundredth of the layer's
    mean variance; then the mean over the layers. One is a deviation off, whatever the width and
    the depth. The form is ours; ``published=True`` is DeepInversion's (Yin et al., CVPR 2020),
    ``sum_l |m' - m| + |s'^2 - s^2|`` with Euclidean norms over the channels, which grows with
    both (weights there 10 at 32 px, 0.01 to 0.05 at 224 px).

    Batch-level: the statistics are those of all images of all processes; those of few images
    scatter by about ``1 / sqrt(B)`` in layers that see each image once, which no image can help.
    ``momentum`` averages them with those of the images finished before (Fast-Datafree: 0.9).

    Args:
        weight (float): Factor of the term in the objective.
        first_weight (float): Factor of the first layer, which has the colours.
        momentum (float): Share of earlier images in the statistics, in [0, 1).
        published (bool): The published form.

    Raises:
        ValueError: If the momentum is none.
    """

    name = 'batch_norm'

    def __init__(
        self,
        weight: float = 1.0,
        first_weight: float = 1.0,
        momentum: float = 0.0,
        published: bool = False,
    ) -> None:
        super().__init__(weight)
        if not 0 <= momentum < 1:
            raise ValueError(f'BatchNormPrior: momentum is at least 0 and below 1, got {momentum}.')
        self.first_weight = first_weight
        self.momentum = momentum
        self.published = published
        # Of all layers end to end, means and then variances; empty before the first batch.
        self.register_buffer('earlier', torch.zeros(0))

    @property
    def remembers(self) -> bool:
        """Where earlier images count."""
        return self.momentum > 0

    def taps(self, teacher: Adapter) -> tuple[str, ...]:
        """What enters the batch norms of backbone and neck."""
        return tuple(f'{name}:input' for name in batch_norms(teacher.net))

    def unsuited(self, teacher: Adapter) -> str | None:
        """Where there is no batch norm."""
        if batch_norms(teacher.net):
            return None
        why = 'the teacher has no batch norms in backbone and neck, whose statistics it could match'
        if attention_layers(teacher.net):
            return f'{why}; mmdfkd.AttentionPrior and mmdfkd.PatchSimilarityPrior would do'
        return f'{why}; mmdfkd.TotalVariationPrior and mmdfkd.ContrastivePrior would do'

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """Scalar, at least zero."""
        layers, moments, sizes = self._moments(ctx)
        if self.momentum and len(self.earlier):
            moments = torch.lerp(moments, self.earlier.to(moments), self.momentum)
        means, variances = (part.split(sizes) for part in moments.chunk(2))
        distances = [
            batch_norm_distance(
                mean, variance, layer.running_mean, layer.running_var, self.published
            )
            for layer, mean, variance in zip(layers, means, variances, strict=True)
        ]
        weights = [self.first_weight] + [1.0] * (len(distances) - 1)
        total = sum(w * d for w, d in zip(weights, distances, strict=True))
        return total if self.published else total / sum(weights)

    @torch.no_grad()
    def finished(self, ctx: SynthesisContext) -> None:
        """Add the images' statistics to those of the earlier ones."""
        if not self.momentum:
            return
        _, moments, _ = self._moments(ctx)
        if len(self.earlier):
            moments = torch.lerp(moments, self.earlier.to(moments), self.momentum)
        self.earlier = moments.detach().clone()

    def _moments(self, ctx: SynthesisContext) -> tuple[list, Tensor, list[int]]:
        """The layers met, their channels' means and then variances end to end, and their widths."""
        inputs = ctx.teacher_memory.taps
        layers = {
            name: layer
            for name, layer in batch_norms(ctx.teacher.net).items()
            if f'{name}:input' in inputs
        }
        if not layers:
            raise ValueError(
                'BatchNormPrior: nothing passed through the batch norms; its taps have to be among '
                'those of the context.'
            )
        moments = channel_moments([inputs[f'{name}:input'] for name in layers])
        return list(layers.values()), moments, [layer.num_features for layer in layers.values()]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # As long as the teacher of the checkpoint has channels.
        earlier = state_dict.get(prefix + 'earlier')
        if earlier is not None:
            self.earlier = torch.zeros_like(earlier, device=self.earlier.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def channel_moments(inputs: Sequence[Tensor]) -> Tensor:
    """Means and biased variances of the channels over the images of all processes.

    Args:
        inputs (Sequence[Tensor]): ``[B, C_l, ...]`` of each layer.

    Returns:
        Tensor: ``[2 * sum_l C_l]``: the means of all layers end to end, then the variances.
    """
    rows = [at_least_float32(x).transpose(0, 1).flatten(1) for x in inputs]
    sizes = [len(row) for row in rows]
    counts = torch.cat([row.new_full((len(row),), row.shape[1]) for row in rows])
    counts = summed_over_ranks(counts)
    means = summed_over_ranks(torch.cat([row.sum(1) for row in rows])) / counts
    off = [
        (row - mean[:, None]).square().sum(1)
        for row, mean in zip(rows, means.split(sizes), strict=True)
    ]
    return torch.cat([means, summed_over_ranks(torch.cat(off)) / counts])


def batch_norm_distance(
    mean: Tensor,
    variance: Tensor,
    stored_mean: Tensor,
    stored_variance: Tensor,
    published: bool = False,
) -> Tensor:
    """How far the statistics of one layer are from the stored ones, see :class:`BatchNormPrior`.

    Args:
        mean (Tensor): Of the batch, ``[C]``.
        variance (Tensor): Of the batch, ``[C]``.
        stored_mean (Tensor): ``[C]``.
        stored_variance (Tensor): ``[C]``.
        published (bool): DeepInversion's form.

    Returns:
        Tensor: Scalar.
    """
    stored_mean, stored_variance = stored_mean.to(mean), stored_variance.to(mean)
    if published:
        return torch.linalg.vector_norm(mean - stored_mean) + torch.linalg.vector_norm(
            variance - stored_variance
        )
    # The roots stay differentiable at zero.
    tiny = 1e-12
    unit = stored_variance + stored_variance.mean() / 100 + tiny
    spread = (variance + tiny).sqrt() - (stored_variance + tiny).sqrt()
    return (((mean - stored_mean).square() + spread.square()) / unit + tiny).mean().sqrt()
