from torch import Tensor

from mmdfkd.adapters.observation import Targets
from mmdfkd.registry import MODELS

from .attention_base import AttentionTerm
from .attention_reading import patch_scores
from .context import SynthesisContext
from .parts import AttentionLayer, attention_layers, without_attention


@MODELS.register_module()
class AttentionConsistencyPrior(AttentionTerm):
    """Teacher and student are to look at the same patches; with a negative weight, at others.

    ``mean_j (N p_T - N p_S)^2`` of the class token's attention ``p`` to the ``N`` patches,
    averaged over heads, each teacher's block with the student's block at the nearest depth: our
    reading (b) of ``L_attention`` of *Optimizing Vision Transformers with Data-Free Knowledge
    Transfer* (arXiv 2408.05952), which gives no formula. A negative weight makes it an adversary.
    Zero where the teacher answers for the student, before the first step. It costs a second pass
    of the student.

    Args:
        weight (float): Factor of the term in the objective.
        from_depth (float): Blocks at or behind this share of the depth are looked at, in [0, 1].

    Raises:
        ValueError: If the depth is no share.
    """

    name = 'attention_consistency'
    extra_student_passes = 1.0

    @property
    def role(self) -> str | None:
        """An adversary where its weight is negative."""
        return 'adversary' if self.weight < 0 else None

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
        taps = tuple(dict.fromkeys(layer.qkv for _, layer in pairs))
        # The same reading of the same images, by the student.
        student = SynthesisContext(ctx.images, Targets(), ctx.student, taps=taps)
        found = []
        for mine, its in pairs:
            wanted, other = self._attention(ctx, mine), self._attention(student, its)
            if wanted.shape != other.shape:
                raise ValueError(
                    f'AttentionConsistencyPrior: the teacher has {wanted.shape[1]} patches and the '
                    f'student {other.shape[1]}: it serves students of the same patch size.'
                )
            found.append((wanted - other).square().mean(1))
        return sum(found) / len(found)

    @staticmethod
    def _attention(ctx: SynthesisContext, layer: AttentionLayer) -> Tensor:
        """Attention to the patches, mean over heads, in units of uniform attention: ``[B, N]``."""
        scores, _ = patch_scores(ctx, layer, 'class' if layer.class_row else 'mean')
        attention = scores.squeeze(2).softmax(-1).mean(1)
        return attention * attention.shape[-1]
