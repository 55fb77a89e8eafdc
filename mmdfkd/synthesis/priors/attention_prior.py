import numpy as np
import torch
from torch import Tensor

from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .attention_base import AttentionTerm
from .attention_reading import patch_scores
from .context import SynthesisContext
from .mixture_maps import mixture_maps
from .parts import AttentionLayer


@MODELS.register_module()
class AttentionPrior(AttentionTerm):
    """Each head is to look at some few places: random maps of Gaussian hills.

    SARDFQ's attention priors alignment (ICCV 2025): a random Gaussian mixture for each image, block
    and head of the later half of the blocks, and the class token's attention is drawn to it, deeper
    blocks more (weight ``l / L``). Images of things have such attention, noise has none.

    There the distance is a mean square of rows that sum to 1, so that it falls with the square of
    the number of patches, and its weight is searched from 1 to 100,000 for each teacher. Here both
    are normalised over the patches and the distance is in units of the map's own variance (see
    :func:`map_distance`): 1 for attention that prefers nothing, 0 at agreement, at any resolution.
    Blocks are weighted by their depth, with sum 1. The maps are a function of seed and image, and
    stay the same while it is optimised. Without a class token the patches' mean query stands for
    it, as there for Swin.

    Args:
        weight (float): Factor of the term in the objective.
        from_depth (float): Blocks at or behind this share of the depth are looked at, in [0, 1].
        components (int): Most hills of a map.

    Raises:
        ValueError: If the depth is no share, or there are no hills.
    """

    name = 'attention'

    def __init__(self, weight: float = 1.0, from_depth: float = 0.5, components: int = 5) -> None:
        super().__init__(weight, from_depth)
        if components < 1:
            raise ValueError(f'AttentionPrior: components is at least 1, got {components}.')
        self.components = components
        # The maps of the batch under optimisation, which asks for the same ones at every step.
        self._batch: tuple | None = None
        self._maps: dict[int, Tensor] = {}

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``, at least zero."""
        total, weights = 0, 0.0
        for index, layer in enumerate(self._layers(ctx)):
            scores, grid = patch_scores(ctx, layer, 'class' if layer.class_row else 'mean')
            attention = scores.squeeze(2).softmax(-1)
            wanted, least = self._seen(ctx, self._wanted(ctx, index, layer, grid).to(attention))
            total = total + layer.depth * map_distance(attention, wanted, least).mean(1)
            weights += layer.depth
        return total / weights

    def _wanted(
        self, ctx: SynthesisContext, index: int, layer: AttentionLayer, grid: tuple[int, int]
    ) -> Tensor:
        """The maps of the images: ``[B, heads, N]``."""
        count = len(ctx.images)
        serials = tuple(range(count)) if ctx.serials is None else tuple(map(int, ctx.serials))
        batch = (ctx.seed, serials, grid)
        if self._batch != batch:
            self._batch, self._maps = batch, {}
        if index not in self._maps:
            maps = [
                mixture_maps(
                    ctx.rng('attention-maps', i, index), layer.num_heads, grid, self.components
                )
                for i in range(count)
            ]
            self._maps[index] = torch.from_numpy(np.stack(maps)).float().to(ctx.images.device)
        return self._maps[index]

    @staticmethod
    def _seen(ctx: SynthesisContext, maps: Tensor) -> tuple[Tensor, Tensor | float]:
        """The maps over the patches that the teacher saw, again of sum 1; and their least variance.

        A hill may lie where the teacher saw nothing. What is left of its map is flat then, and
        counts in units of the whole map's variance.
        """
        kept = ctx.teacher_memory.kept
        if kept is None:
            return maps, 1e-12
        seen = maps.gather(2, kept[:, None].expand(-1, maps.shape[1], -1))
        return seen / seen.sum(-1, keepdim=True).clamp_min(1e-12), map_spread(maps)


def map_spread(maps: Tensor) -> Tensor:
    """Variance of maps ``[..., N]`` of sum 1, times ``N``: ``[...]``."""
    return (maps - 1 / maps.shape[-1]).square().sum(-1)


def map_distance(attention: Tensor, wanted: Tensor, least: Tensor | float = 1e-12) -> Tensor:
    """Squared distance of two maps in units of the wanted one's variance.

    ``sum_j (a_j - g_j)^2 / sum_j (g_j - 1 / N)^2``: what is left of the wanted map's structure.

    Args:
        attention (Tensor): ``[..., N]``, of sum 1.
        wanted (Tensor): ``[..., N]``, of sum 1; a constant.
        least (Tensor | float): Least :func:`map_spread` that counts.

    Returns:
        Tensor: ``[...]``; 1 where the attention is uniform.
    """
    attention, wanted = at_least_float32(attention), at_least_float32(wanted)
    return (attention - wanted).square().sum(-1) / map_spread(wanted).clamp(min=least)
