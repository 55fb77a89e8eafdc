from collections.abc import Sequence

import torch

from .base import SyntheticSource


class RetreatingSource(SyntheticSource):
    """A source that draws a share of images that it makes itself, and the rest from an inner one.

    Every collapse halves the share of the former: the inner source's images, procedural ones as a
    rule, take their place. How often that was is in the checkpoint.

    Attributes:
        share: As configured.
        retreats: Number of collapses so far.
    """

    share: float

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('retreats', torch.zeros((), dtype=torch.int64))

    @property
    def share_now(self) -> float:
        """``share / 2 ** retreats``."""
        return self.share * 0.5 ** int(self.retreats)

    def on_collapse(self, reasons: Sequence[str]) -> str | None:
        """Halve the share, where there is an inner source."""
        before = self.share_now
        if before == 0 or getattr(self, 'source', None) is None:
            return None
        self.retreats += 1
        return (
            f'{type(self).__name__} draws a share of {self.share_now:g} of its own images, '
            f'not {before:g}'
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # Checkpoints of before there was such a count.
        state_dict.setdefault(f'{prefix}retreats', torch.zeros((), dtype=torch.int64))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
