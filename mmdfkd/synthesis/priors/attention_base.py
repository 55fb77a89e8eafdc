from mmdfkd.adapters.base import Adapter

from .attention_reading import chosen_layers
from .base import Prior
from .context import SynthesisContext
from .parts import AttentionLayer, attention_layers, without_attention


class AttentionTerm(Prior):
    """A term of the teacher's attention over the whole image.

    Args:
        weight (float): Factor of the term in the objective.
        from_depth (float): Blocks at or behind this share of the depth are looked at, in [0, 1].

    Raises:
        ValueError: If the depth is no share.
    """

    def __init__(self, weight: float = 1.0, from_depth: float = 0.0) -> None:
        super().__init__(weight)
        if not 0 <= from_depth <= 1:
            raise ValueError(
                f'{type(self).__name__}: from_depth is a share from 0 to 1, got {from_depth}.'
            )
        self.from_depth = from_depth

    def layers(self, teacher: Adapter) -> list[AttentionLayer]:
        """The layers it looks at."""
        return chosen_layers(attention_layers(teacher.net), self.from_depth)

    def taps(self, teacher: Adapter) -> tuple[str, ...]:
        """Queries, keys and values of these layers."""
        return tuple(layer.qkv for layer in self.layers(teacher))

    def unsuited(self, teacher: Adapter) -> str | None:
        """Where no attention over the whole image can be read."""
        return without_attention(teacher.net)

    def _layers(self, ctx: SynthesisContext) -> list[AttentionLayer]:
        """As :meth:`layers`.

        Raises:
            ValueError: If there are none.
        """
        reason = self.unsuited(ctx.teacher)
        if reason is not None:
            raise ValueError(f'{type(self).__name__} does not apply: {reason}.')
        return self.layers(ctx.teacher)
