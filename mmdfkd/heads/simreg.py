from collections.abc import Mapping

from torch import Tensor, nn

from mmdfkd.adapters import Observation
from mmdfkd.losses import simreg
from mmdfkd.registry import MODELS

from .mlp import MLP
from .token_head import TokenHead
from .tokens import split_tokens


@MODELS.register_module()
class SimRegHead(TokenHead):
    """Regression of the teacher's pooled feature by an MLP (SimReg, Navaneet et al., BMVC 2021).

    A deep projector that is dropped after training; only the direction of the feature counts. The
    feature is the first prefix token, or the mean of the patches where there is none. LayerNorms
    stand between the linear layers (ours): a synthetic batch may be too small for BatchNorms.

    Args:
        layers (int): Linear layers of the MLP; published 4. Defaults to 4.
        hidden (int, optional): Its inner width. Defaults to twice the student's.
        **kwargs: ``taps_student``, ``taps_teacher``, ``levels``, ``prefix_tokens`` and
            ``channels_last`` of :class:`~mmdfkd.heads.token_head.TokenHead`, ``loss_weight``,
            ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: Without any layer, or if taps do not pair.
    """

    loss_key = 'loss_simreg'

    def __init__(self, layers: int = 4, hidden: int | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        if layers < 1:
            raise ValueError(f'SimRegHead needs a linear layer or more, not {layers}.')
        self.layers = layers
        self.hidden = hidden
        self.projectors: nn.ModuleList | None = None

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """An MLP per pair."""
        super().build_aligners(student_widths, teacher_widths)
        self.projectors = nn.ModuleList(
            MLP(s, self.hidden or 2 * s, t, self.layers) for s, t in zip(*self.widths, strict=True)
        )

    def pair_loss(self, index: int, student: Observation, teacher: Observation) -> Tensor:
        """Projected student against teacher."""
        own = self.projectors[index](self._pooled(student, 0, index))
        return simreg(own, self._pooled(teacher, 1, index))

    def _pooled(self, observation: Observation, side: int, index: int) -> Tensor:
        prefix, patches = split_tokens(*self.tokens(observation, side, index))
        return prefix[:, 0] if prefix.shape[1] else patches.mean((2, 3))
