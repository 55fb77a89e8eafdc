import torch
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.losses.head_attention import ssim
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .attention_base import AttentionTerm
from .attention_reading import patch_scores
from .context import SynthesisContext


@MODELS.register_module()
class InterHeadPrior(AttentionTerm):
    """The heads of a layer are to see the same structure in an image.

    ``1 - SSIM(a_h, a_h')^2``, averaged over blocks, queries and pairs of different heads, of maps
    scaled to [0, 1] (MimiQ, Choi et al., 2024; the square and the scaling as in the code of its
    successor MaskAQ, which counts each head with itself too: at ``h`` heads its value is this one's
    times ``(h - 1) / h``). Real images have heads that agree, noise has not.

    As there, the maps are those before the softmax; ``softmax=True`` takes the attention itself.
    Published over all queries of all blocks, ``O(h^2 N^2)``; here of ``queries`` patches, evenly
    spread.

    Args:
        weight (float): Factor of the term in the objective.
        from_depth (float): Blocks at or behind this share of the depth are looked at, in [0, 1].
        queries (int): Patches whose maps are compared.
        softmax (bool): Compare the attention instead of its scores.

    Raises:
        ValueError: If the depth is no share, or there are no queries.
    """

    name = 'inter_head'

    def __init__(
        self,
        weight: float = 1.0,
        from_depth: float = 0.0,
        queries: int = 16,
        softmax: bool = False,
    ) -> None:
        super().__init__(weight, from_depth)
        if queries < 1:
            raise ValueError(f'InterHeadPrior: queries is at least 1, got {queries}.')
        self.queries = queries
        self.softmax = softmax

    def unsuited(self, teacher: Adapter) -> str | None:
        """Where there is no such attention, or one head only."""
        reason = super().unsuited(teacher)
        if reason is None and all(layer.num_heads < 2 for layer in self.layers(teacher)):
            return (
                'its attention has one head, and there is nothing to compare it with; '
                'mmdfkd.AttentionPrior would do'
            )
        return reason

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]`` in [0, 1]."""
        found = []
        for layer in self._layers(ctx):
            if layer.num_heads > 1:
                maps, _ = patch_scores(ctx, layer, self.queries)
                found.append(inter_head_difference(maps.softmax(-1) if self.softmax else maps))
        return sum(found) / len(found)


def inter_head_difference(maps: Tensor) -> Tensor:
    """``1 - SSIM^2``, averaged over queries and pairs of heads.

    Args:
        maps (Tensor): ``[B, h, R, N]`` with two heads or more, of any range: each is scaled to
            [0, 1].

    Returns:
        Tensor: ``[B]`` in [0, 1].
    """
    maps = at_least_float32(maps)
    maps = maps - maps.amin(-1, keepdim=True)
    maps = maps / maps.amax(-1, keepdim=True).clamp_min(1e-8)
    first, second = torch.triu_indices(maps.shape[1], maps.shape[1], 1, device=maps.device)
    return (1 - ssim(maps[:, first], maps[:, second]).square()).mean((1, 2))
