from abc import abstractmethod

from torch import Tensor, nn

from mmdfkd.adapters.base import Adapter

from .context import SynthesisContext


class Prior(nn.Module):
    """A term that synthetic images are made to lower.

    An image-level term returns one value an image, ``[B]``, and is scale-free: it depends neither
    on the other images nor on the batch size, the resolution or the network's width. A batch-level
    term returns a scalar and says how it depends on the batch.

    Args:
        weight (float): Factor of the term in the objective.

    Attributes:
        extra_passes: Passes of the teacher for each image, beside the one that all terms share.
        asks_student: Whether it wants the student's answer, one pass that all such terms share.
        extra_student_passes: Passes of the student for each image, beside that one.
        remembers: Whether :meth:`finished` looks at what the teacher says of the images.
    """

    #: Name of the term in logs.
    name: str
    extra_passes: float = 0.0
    asks_student: bool = False
    extra_student_passes: float = 0.0
    remembers: bool = False
    #: What the term is for where images collapse: ``'diversity'`` asks for different images,
    #: ``'adversary'`` for such as the student does not know; None for neither.
    role: str | None = None

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def taps(self, teacher: Adapter) -> tuple[str, ...]:
        """Names of the teacher's modules whose outputs the term needs."""
        return ()

    def unsuited(self, teacher: Adapter) -> str | None:
        """Why the term does not apply to this teacher; None where it does."""
        return None

    def finished(self, ctx: SynthesisContext) -> None:
        """Take note of finished images; nothing unless the term remembers earlier ones.

        A source calls it once for each batch of images that it keeps, without gradient. What a term
        remembers is in its state.
        """

    @abstractmethod
    def forward(self, ctx: SynthesisContext) -> Tensor:
        """The term, ``[B]`` or a scalar, differentiable to ``ctx.images``."""
