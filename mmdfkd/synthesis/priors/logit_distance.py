from torch import Tensor

from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext


@MODELS.register_module()
class LogitDistancePrior(Prior):
    """The student is to disagree with the teacher: the distance of their logits.

    ``-mean_c |z_T - z_S|`` (DFAD, Fang et al., 2019: its gradient does not vanish where both
    nearly agree, as that of a divergence does). Unbounded below, in the logits' own units. At a
    detector's proposals the rows are weighted by objectness.
    """

    name = 'logit_distance'
    asks_student = True
    role = 'adversary'

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``, at most zero."""
        teacher = at_least_float32(ctx.teacher_response.logits)
        student = at_least_float32(ctx.student_response.logits)
        return -ctx.by_image((teacher - student).abs().mean(-1))
