"""What a run asks of its teacher, worked out from its source before it starts.

The unit is one whole image through the teacher without gradient. With a gradient to its pixels it
counts twice, forwards and backwards; at a smaller size by its share of the tokens. What
:class:`mmdfkd.engine.TeacherPassesHook` counts in a run is in the same unit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from mmdet.models.detectors.base import BaseDetector
from torch import nn

from mmdfkd.synthesis import SyntheticSource, look_choice
from mmdfkd.synthesis.priors.parts import attention_layers, patch_size
from mmdfkd.synthesis.symmetry import ASKED

_WITH_GRADIENT = 2
_ASK_STUDENT = (
    'DivergencePrior',
    'JensenShannonPrior',
    'LogitDistancePrior',
    'AttentionConsistencyPrior',
)


@dataclass(frozen=True)
class TeacherPasses:
    """Passes of a source.

    Attributes:
        before: Before the first training step.
        rounds: Of each kind of round its first training step, the steps from one to the next, and
            its passes.
    """

    before: float = 0.0
    rounds: tuple[tuple[int, int, float], ...] = ()

    def __add__(self, other: 'TeacherPasses') -> 'TeacherPasses':
        return TeacherPasses(self.before + other.before, self.rounds + other.rounds)

    def of(self, steps: int, batch: int) -> float:
        """All passes of a run: the source's and those of the training steps.

        Args:
            steps (int): Training steps.
            batch (int): Images of each.
        """
        made = sum(cost * len(range(first, steps, every)) for first, every, cost in self.rounds)
        return self.before + made + steps * batch

    def steps_within(self, budget: float, batch: int) -> int:
        """Most training steps that a budget allows.

        Args:
            budget (float): Passes in all.
            batch (int): Images of a training step.

        Raises:
            ValueError: If not even one step is left.
        """
        least, most = 0, int(budget // batch) + 1
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if self.of(middle, batch) <= budget else (least, middle)
        if least < 1 or self.of(least, batch) > budget:
            raise ValueError(
                f'A budget of {budget:g} passes of the teacher leaves no training step of {batch} '
                f'images: the source alone takes {self.before:g} before the first one.'
            )
        return least


def teacher_passes(
    source: SyntheticSource, teacher: nn.Module, size: tuple[int, int]
) -> TeacherPasses:
    """What a source asks of the teacher.

    Args:
        source (SyntheticSource): As built, not prepared.
        teacher (nn.Module): The teacher's network.
        size (tuple[int, int]): Height and width of an image.

    Raises:
        TypeError: If nothing is known of the source's kind.
    """
    for kind in type(source).__mro__:
        if kind.__name__ in _KNOWN:
            return _KNOWN[kind.__name__](source, teacher, size)
    raise TypeError(
        f'Nothing is known of the passes of {type(source).__name__}; it is known of '
        f'{", ".join(_KNOWN)}.'
    )


def _nothing(*_) -> TeacherPasses:
    return TeacherPasses()


def _pooled(source, teacher, size) -> TeacherPasses:
    chosen = (
        0
        if isinstance(source.renderer, dict)
        else len(source.renderer) * look_choice.ASKED * look_choice.VIEWS
    )
    detects = isinstance(teacher, BaseDetector)
    asked = min(ASKED, source.pool_size) if source.asks_symmetries(detects) else 0
    chosen += asked * _looks(size)
    return TeacherPasses(chosen + (source.pool_size if source.balance else 0))


def _refined(source, teacher, size) -> TeacherPasses:
    # The steps, and the last image.
    cost = source.batch * (_WITH_GRADIENT * source.steps + 1)
    first = ceil(source.start / source.every) * source.every
    own = TeacherPasses(rounds=((first, source.every, cost),))
    return own + teacher_passes(source.source, teacher, size)


def _generated(source, *_) -> TeacherPasses:
    cost = _WITH_GRADIENT * source.batch * source.steps
    # Before the first step the teacher answers for the student.
    twice = 2 if any(type(prior).__name__ in _ASK_STUDENT for prior in source.priors) else 1
    return TeacherPasses(source.first * cost * twice, ((source.start, source.every, cost),))


def _inverted(source, teacher, size) -> TeacherPasses:
    from mmdfkd.synthesis.sources.pixel_inversion import half_size

    patch, tokens = patch_size(teacher), _tokens(teacher, size)
    small = half_size(size, patch) if source.half else None
    halved = int(source.half * source.steps) if small else 0
    whole = source.steps - halved
    mean = last = 1.0
    if source.sparse is not None:
        patches = (size[0] // patch[0]) * (size[1] // patch[1])
        mean = (tokens - patches * (1 - source.sparse.mean_share(patches, whole))) / tokens
        kept = [patches, *source.sparse.events(patches, whole).values()][-1]
        last = (tokens - patches + kept) / tokens
    one = _WITH_GRADIENT * whole * mean
    if halved:
        one += _WITH_GRADIENT * halved * _tokens(teacher, small) / tokens
    # Now and then the image itself; finished images are looked at once more.
    one += source.yields + (source.checks * last if source.yields == 1 else 0)
    count = ceil(source.images / source.yields)
    cost = TeacherPasses(count * one)
    if hasattr(source.augment, 'restrict'):
        cost += TeacherPasses(_looks(size) * min(count * source.yields, ASKED))
    if source.every:
        cost += TeacherPasses(rounds=((source.every, source.every, source.batch * one),))
    if source.source is not None:
        cost += teacher_passes(source.source, teacher, size)
    return cost


def _mixed(source, teacher, size) -> TeacherPasses:
    parts = (teacher_passes(part, teacher, size) for part in source.sources)
    return sum(parts, TeacherPasses())


def _looks(size: tuple[int, int]) -> int:
    """An image as it is, in two mirrors, and, if it is square, turned."""
    return 4 if size[0] == size[1] else 3


def _tokens(teacher: nn.Module, size: tuple[int, int]) -> int:
    """Tokens of an image in a plain transformer, its pixels in another network."""
    layers, patch = attention_layers(teacher), patch_size(teacher)
    if not layers or not layers[0].prefix_tokens or patch is None:
        return size[0] * size[1]
    return layers[0].prefix_tokens + (size[0] // patch[0]) * (size[1] // patch[1])


_KNOWN: dict[str, Callable[..., TeacherPasses]] = {
    'DatasetSource': _nothing,
    'RenderedSource': _nothing,
    'PooledSource': _pooled,
    'RefinedSource': _refined,
    'GeneratorSource': _generated,
    'PixelInversionSource': _inverted,
    'MixtureSource': _mixed,
}
