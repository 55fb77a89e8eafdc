from torch import Tensor

from mmdfkd.losses.attention_consistency import attention_uniformity
from mmdfkd.registry import MODELS

from .attention_base import AttentionTerm
from .attention_reading import patch_scores
from .context import SynthesisContext


@MODELS.register_module()
class AttentionFocusPrior(AttentionTerm):
    """The class token is to look at few patches, whichever they are.

    ``cos(a, u)`` of its attention with uniform attention, averaged over heads and blocks: 1 where
    it prefers nothing, ``1 / sqrt(N)`` where it sees one of ``N`` patches. Attention Probe (Wang et
    al., ICASSP 2022) keeps those wild images for which it is small; as a term of a generator it is
    our reading (a) of ``L_attention`` of *Optimizing Vision Transformers with Data-Free Knowledge
    Transfer* (arXiv 2408.05952), which gives no formula. Without a class token the patches' mean
    query stands for it.

    Args:
        weight (float): Factor of the term in the objective.
        from_depth (float): Blocks at or behind this share of the depth are looked at, in [0, 1].

    Raises:
        ValueError: If the depth is no share.
    """

    name = 'attention_focus'

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]`` in (0, 1]."""
        found = []
        for layer in self._layers(ctx):
            scores, _ = patch_scores(ctx, layer, 'class' if layer.class_row else 'mean')
            found.append(attention_uniformity(scores.squeeze(2).softmax(-1), 0).mean(1))
        return sum(found) / len(found)
