"""What a run asks of its teacher, worked out from its source before it starts.

The unit is one whole image through the teacher without gradient. With a gradient to its pixels it
counts twice, forwards and backwards; at a smaller size by its share of the tokens. Where a prior
asks a random number of times its mean counts. What :class:`mmdfkd.engine.TeacherPassesHook` counts
in a run is in the same unit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from mmdet.models.detectors.base import BaseDetector
from torch import nn

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import SyntheticSource, inspect_teacher, look_choice
from mmdfkd.synthesis.automatic import AutomaticPriors
from mmdfkd.synthesis.image_files import image_files
from mmdfkd.synthesis.priors.base import Prior
from mmdfkd.synthesis.priors.parts import attention_layers, patch_size
from mmdfkd.synthesis.symmetry import ASKED

_WITH_GRADIENT = 2


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
    priors = _used(source.priors, teacher)
    # The steps and the last image; what remembers looks at the best ones.
    each = (_WITH_GRADIENT * source.steps + 1) * (1 + _beside(priors))
    each += any(prior.remembers for prior in priors) + isinstance(teacher, BaseDetector)
    first = ceil(source.start / source.every) * source.every
    own = TeacherPasses(rounds=((first, source.every, source.batch * each),))
    return own + teacher_passes(source.source, teacher, size)


def _generated(source, teacher, _) -> TeacherPasses:
    priors = _used(source.priors, teacher)
    cost = _WITH_GRADIENT * source.batch * source.steps
    return TeacherPasses(
        source.first * cost * (1 + _beside(priors, alone=True)),
        ((source.start, source.every, cost * (1 + _beside(priors))),),
    )


def _inverted(source, teacher, size) -> TeacherPasses:
    from mmdfkd.synthesis.sources.pixel_inversion import half_size

    priors, detects = _used(source.priors, teacher), isinstance(teacher, BaseDetector)
    patch, tokens = patch_size(teacher), _tokens(teacher, size)
    small = half_size(size, patch) if source.half else None
    halved = int(source.half * source.steps) if small else 0
    # Of a pass at half the resolution.
    share = _tokens(teacher, small) / tokens if halved else 1.0
    whole = source.steps - halved
    mean = last = 1.0
    if source.sparse is not None:
        patches = (size[0] // patch[0]) * (size[1] // patch[1])
        mean = (tokens - patches * (1 - source.sparse.mean_share(patches, whole))) / tokens
        kept = [patches, *source.sparse.events(patches, whole).values()][-1]
        last = (tokens - patches + kept) / tokens

    def one(beside: float) -> float:
        """Of a trajectory; the passes beside the shared one are of whole images."""
        cost = _WITH_GRADIENT * (whole * (mean + beside) + halved * share * (1 + beside))
        # Now and then the image itself; finished images are looked at once more.
        cost += source.checks * (last + beside) if source.yields == 1 else 0
        if not detects or any(prior.remembers for prior in priors):
            cost += source.yields
        # A detector's layout is proposed by itself.
        return cost + (share if detects else 0)

    count = ceil(source.images / source.yields)
    cost = TeacherPasses(count * one(_beside(priors, alone=True)))
    if hasattr(source.augment, 'restrict'):
        cost += TeacherPasses(_looks(size) * min(count * source.yields, ASKED))
    if source.every:
        made = source.batch * one(_beside(priors))
        cost += TeacherPasses(rounds=((source.every, source.every, made),))
    if source.source is not None:
        cost += teacher_passes(source.source, teacher, size)
    return cost


def _used(priors: Iterable[Prior], teacher: nn.Module) -> list[Prior]:
    """Those that a source will use with this teacher."""
    adapter = build_adapter(teacher, Normalizer([0.0] * 3, [1.0] * 3, 'rgb'))
    if isinstance(priors, AutomaticPriors) and not priors.chosen:
        chosen = inspect_teacher(adapter, priors.student, priors.targets).priors
        priors = [MODELS.build(prior) for prior in chosen]
    return [prior for prior in priors if prior.unsuited(adapter) is None]


def _beside(priors: Iterable[Prior], alone: bool = False) -> float:
    """Passes of an image in one evaluation of the objective, beside the one that all terms share.

    Args:
        priors (Iterable[Prior]): The terms.
        alone (bool): Before the first training step the teacher answers for the student.
    """
    passes = sum(prior.extra_passes for prior in priors)
    if alone:
        passes += any(prior.asks_student for prior in priors)
        passes += sum(prior.extra_student_passes for prior in priors)
    return passes


def _mixed(source, teacher, size) -> TeacherPasses:
    parts = (teacher_passes(part, teacher, size) for part in source.sources)
    return sum(parts, TeacherPasses())


def _replayed(source, teacher, size) -> TeacherPasses:
    one = 0
    if source.labels == 'teacher' or (source.answers and not source.views):
        one += 1
    if source.answers:
        one += source.views
    own = TeacherPasses(source.prefill * one)
    if source.every:
        own += TeacherPasses(rounds=((0, source.every, source.batch * one),))
    # Kept answers are not asked for again. At most: an image that is picked twice is asked once.
    if source.bank_cfg.get('policy') == 'disagreement' and not source.answers:
        own += TeacherPasses(rounds=((0, source.measure_every, source.measure),))
    return own + teacher_passes(source.source, teacher, size)


def _of_folder(source, *_) -> TeacherPasses:
    # Of those that cannot be read nobody is asked.
    return TeacherPasses(len(image_files(source.root)))


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
    'ReplaySource': _replayed,
    'FolderSource': _of_folder,
}
