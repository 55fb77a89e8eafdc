from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.losses.attention_probe import class_gram_row
from mmdfkd.registry import MODELS

from .attention_base import AttentionTerm
from .attention_reading import chosen_layers, patch_scores
from .context import SynthesisContext
from .embedding import embedding_layers
from .parts import AttentionLayer, attention_layers, without_attention

_OF = ('attention', 'probe')


@MODELS.register_module()
class AttentionConsistencyPrior(AttentionTerm):
    """Teacher and student are to look at the same patches; with a negative weight, at others.

    Our reading (b) of ``L_attention`` of *Optimizing Vision Transformers with Data-Free Knowledge
    Transfer* (arXiv 2408.05952), which gives no formula. Each teacher's block is compared with the
    student's block at the nearest depth, and the mean is taken over the blocks:

    * ``'attention'``: ``mean_j (N p_T - N p_S)^2`` of the class token's attention ``p`` to the
      ``N`` patches, averaged over heads, in every block.
    * ``'probe'``: ``mean_j (p_T - p_S)^2`` of the class token's cosines to the patches, ``p = F_cls
      F_patches``, in the blocks at the thirds of the depth: ``L_patch``, Attention Probe's loss
      (Wang et al., ICASSP 2022, normalised along the channels as its paper says), on the images.
      In [0, 4].

    Without a class token the patches' mean query, or their mean unit token, stands for it. A
    negative weight makes it an adversary. Zero where the teacher answers for the student, before
    the first step. It costs a second pass of the student; the gradient goes through both networks.

    Args:
        weight (float): Factor of the term in the objective.
        from_depth (float): Blocks at or behind this share of the depth are looked at, in [0, 1].
        of (str): What is compared, as above.

    Raises:
        ValueError: If the depth is no share, or on something else to compare.
    """

    name = 'attention_consistency'
    extra_student_passes = 1.0

    def __init__(self, weight: float = 1.0, from_depth: float = 0.0, of: str = 'attention') -> None:
        super().__init__(weight, from_depth)
        if of not in _OF:
            raise ValueError(f'AttentionConsistencyPrior: of must be one of {_OF}, not {of!r}.')
        self.of = of

    @property
    def role(self) -> str | None:
        """An adversary where its weight is negative."""
        return 'adversary' if self.weight < 0 else None

    def layers(self, teacher: Adapter) -> list[AttentionLayer]:
        """The layers it looks at."""
        if self.of == 'attention':
            return super().layers(teacher)
        return chosen_layers(embedding_layers(teacher), self.from_depth)

    def taps(self, teacher: Adapter) -> tuple[str, ...]:
        """Queries and keys of these layers, or the outputs of their blocks."""
        return tuple(self._tap(layer) for layer in self.layers(teacher))

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``, at least zero.

        Raises:
            ValueError: Without a student, without attention that could be read, or where its
                patches are others than the teacher's.
        """
        if ctx.student is None:
            raise ValueError('AttentionConsistencyPrior asks for the student, and there is none.')
        reason = without_attention(ctx.student.net, 'student')
        if reason is not None:
            # Which term would do instead is said of teachers alone.
            raise ValueError(
                "AttentionConsistencyPrior compares the teacher's attention with that of the "
                f'student, and {reason.split(";")[0]}: leave the prior out, or take another '
                'student.'
            )
        layers = self._layers(ctx)
        theirs = attention_layers(ctx.student.net)
        pairs = [(a, min(theirs, key=lambda b, a=a: abs(b.depth - a.depth))) for a in layers]
        taps = tuple(dict.fromkeys(self._tap(layer) for _, layer in pairs))
        # The same reading of the same images, by the student.
        student = SynthesisContext(ctx.images, Targets(), ctx.student, taps=taps)
        read = self._attention if self.of == 'attention' else self._probe
        found = []
        for mine, its in pairs:
            wanted, other = read(ctx, mine), read(student, its)
            if wanted.shape != other.shape:
                raise ValueError(
                    f'AttentionConsistencyPrior: the teacher has {wanted.shape[1]} patches and the '
                    f'student {other.shape[1]}: it serves students of the same patch size.'
                )
            found.append((wanted - other).square().mean(1))
        return sum(found) / len(found)

    def _tap(self, layer: AttentionLayer) -> str:
        return layer.qkv if self.of == 'attention' else layer.block

    @staticmethod
    def _attention(ctx: SynthesisContext, layer: AttentionLayer) -> Tensor:
        """Attention to the patches, mean over heads, in units of uniform attention: ``[B, N]``."""
        scores, _ = patch_scores(ctx, layer, 'class' if layer.class_row else 'mean')
        attention = scores.squeeze(2).softmax(-1).mean(1)
        return attention * attention.shape[-1]

    @staticmethod
    def _probe(ctx: SynthesisContext, layer: AttentionLayer) -> Tensor:
        """Cosines of the class token to the patches: ``[B, N]``."""
        tokens = ctx.teacher_memory.taps[layer.block]
        tokens = tokens.flatten(1, 2) if tokens.dim() == 4 else tokens
        if layer.class_row:
            return class_gram_row(tokens, layer.prefix_tokens)
        return class_gram_row(tokens[:, layer.prefix_tokens :], 0)
