from torch import Tensor

from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext


@MODELS.register_module()
class TargetPrior(Prior):
    """The teacher is to see the targets: cross-entropy, or the layout loss of a detector."""

    name = 'target'

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``; see :meth:`mmdfkd.adapters.base.Adapter.target_loss`."""
        return ctx.teacher.target_loss(ctx.teacher_memory, ctx.targets)
