from torch import Tensor

from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext


@MODELS.register_module()
class DivergencePrior(Prior):
    """The student is to disagree with the teacher, as a rule only in degree.

    ``-KL(p_T || p_S)`` where both have the same most probable class and zero elsewhere: where they
    already differ, pushing further leads off what the teacher knows (CMI, Fast-Datafree and NAYER
    mask alike). Without the mask it counts everywhere (ZSKT, Micaelli & Storkey, NeurIPS 2019). At
    a detector's proposals the rows are weighted by objectness.

    Args:
        weight (float): Factor of the term in the objective.
        temperature (float): Both distributions are softened by it.
        masked (bool): Whether it rests where both name different classes.

    Raises:
        ValueError: If the temperature is not positive.
    """

    name = 'divergence'
    asks_student = True
    role = 'adversary'

    def __init__(self, weight: float = 1.0, temperature: float = 1.0, masked: bool = True) -> None:
        super().__init__(weight)
        if temperature <= 0:
            raise ValueError(f'DivergencePrior: temperature is positive, got {temperature}.')
        self.temperature = temperature
        self.masked = masked

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``, at most zero."""
        teacher = at_least_float32(ctx.teacher_response.logits)
        student = at_least_float32(ctx.student_response.logits)
        log_p = (teacher / self.temperature).log_softmax(-1)
        log_q = (student / self.temperature).log_softmax(-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        if self.masked:
            divergence = divergence * (teacher.argmax(-1) == student.argmax(-1))
        return -ctx.by_image(divergence)
