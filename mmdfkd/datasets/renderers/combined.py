from collections.abc import Mapping, Sequence

import numpy as np

from mmdfkd.registry import TASK_UTILS

from .base import Renderer
from .fields import log_uniform, spectral, spread, weighted
from .stream import stream

#: Part of the indices of a second image: its renderer shares no random numbers with the first.
_OTHER = 1 << 42


@TASK_UTILS.register_module()
class CombinedRenderer(Renderer):
    """Every image by one of several renderers; some are two of them, side by side in patches.

    Args:
        renderers (Sequence[Mapping]): Configs of the renderers.
        weights (Sequence[float] | None): How often each is taken, relative to the others; all
            alike without.
        joined (float): Share of the images in which patches of a second image lie over the first.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        renderers: Sequence[Mapping] = (
            dict(type='mmdfkd.ProceduralRenderer'),
            dict(type='mmdfkd.DeadLeavesRenderer'),
            dict(type='mmdfkd.FractalRenderer'),
            dict(type='mmdfkd.SinusoidRenderer'),
            dict(type='mmdfkd.ShaderRenderer'),
        ),
        weights: Sequence[float] | None = None,
        joined: float = 0.2,
    ) -> None:
        weights = [1.0] * len(renderers) if weights is None else list(weights)
        if not renderers or len(weights) != len(renderers):
            raise ValueError(
                f'CombinedRenderer: {len(renderers)} renderers with {len(weights)} weights; there '
                'must be at least one, and as many of both.'
            )
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f'CombinedRenderer: weights must not be negative, nor all zero, got {weights}.'
            )
        if not 0 <= joined <= 1:
            raise ValueError(f'CombinedRenderer: joined is a share, from 0 to 1, got {joined}.')
        self.renderers = [TASK_UTILS.build(dict(renderer)) for renderer in renderers]
        self.cumulative = np.cumsum(weights)
        self.joined = joined

    def _render(self, seed: int, g: int, size: tuple[int, int]) -> np.ndarray:
        rng = stream('combined', seed, g)
        image = self._any(rng)(seed, g, size)
        if rng.random() >= self.joined:
            return image
        other = self._any(rng)(seed, g + _OTHER, size)
        noise = spread(spectral(rng, *size, float(min(size)), rng.uniform(1.0, 1.8)))
        sharp = log_uniform(rng, 3, 60)
        share = np.clip((noise - rng.uniform(0.35, 0.65)) * sharp + 0.5, 0, 1)
        return (image + share * (other.astype(np.float32) - image) + 0.5).astype(np.uint8)

    def _any(self, rng: np.random.Generator):
        return self.renderers[weighted(rng, self.cumulative)]
