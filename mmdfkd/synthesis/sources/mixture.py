from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.registry import MODELS

from .base import SyntheticSource
from .dataset import DatasetSource
from .retreat import RetreatingSource


@MODELS.register_module()
class MixtureSource(RetreatingSource):
    """Every sample from one of several sources, in shares that may change over the run.

    Which source a sample comes from is a function of ``(seed, g)`` and of the training step, so a
    resumed run mixes as an uninterrupted one. Every part keeps its own state, its own folder and,
    from the second on, its own seed: two parts of one config make different images.

    A part is refreshed while it has, or will have, a share. After a collapse the parts that make
    images in their refreshes have half their share, and the others the rest. Targets come with the
    images where all images of a batch have them.

    Args:
        sources (Sequence[Mapping]): Configs of the sources.
        weights (Sequence[float] | None): Share of each, up to a common factor; all alike without.
        schedule (Sequence[tuple[int, Sequence[float]]] | None): In place of ``weights``: pairs of a
            training step and the weights there, steps rising. Between two of them the shares change
            linearly; before the first and after the last they stay.

    Raises:
        ValueError: If weights do not fit the sources or a source never has any.
        TypeError: If a part reads an ordinary dataset, whose samples have no index.
    """

    passes_on = True

    def __init__(
        self,
        sources: Sequence[Mapping],
        weights: Sequence[float] | None = None,
        schedule: Sequence[tuple[int, Sequence[float]]] | None = None,
    ) -> None:
        super().__init__()
        if weights is not None and schedule is not None:
            raise ValueError('MixtureSource: set weights or schedule, not both.')
        if schedule is None:
            schedule = [(0, [1.0] * len(sources) if weights is None else weights)]
        self.steps = np.array([step for step, _ in schedule], np.int64)
        self.shares = _shares(len(sources), schedule)
        self.sources = nn.ModuleList(MODELS.build(source) for source in sources)
        if any(isinstance(source, DatasetSource) for source in self.sources):
            raise TypeError(
                'MixtureSource: mmdfkd.DatasetSource takes its images from an ordinary dataset, '
                'whose samples have no index to mix by: use mmdfkd.FolderSource for image files.'
            )
        kinds = [type(source).__name__ for source in self.sources]
        # Two parts of one kind report under the same names.
        self._prefixes = [f'{i}/' if kinds.count(k) > 1 else '' for i, k in enumerate(kinds)]
        self._step = 0

    @property
    def needs_items(self) -> bool:
        """Whether any part does."""
        return any(source.needs_items for source in self.sources)

    @property
    def self_contained(self) -> bool:
        """Whether every part is, and the shares stay."""
        return len(self.steps) == 1 and all(source.self_contained for source in self.sources)

    def prepare(
        self,
        teacher: Adapter,
        *,
        seed: int,
        image_size: tuple[int, int],
        device: torch.device | str,
    ) -> None:
        """Prepare every part."""
        super().prepare(teacher, seed=seed, image_size=image_size, device=device)
        for number, source in enumerate(self.sources):
            source.folder = None if self.folder is None else self.folder / f'part{number}'
            own = int(stream('mixture-part', seed, number).integers(1 << 31)) if number else seed
            source.prepare(teacher, seed=own, image_size=image_size, device=device)

    def fill(self, teacher: Adapter) -> None:
        """Fill every part."""
        for source in self.sources:
            source.fill(teacher)

    def refresh(self, teacher: Adapter, student: Adapter, iteration: int) -> dict[str, float]:
        """Refresh the parts that still have a share.

        Returns:
            dict[str, float]: What the parts log, after the part's number where two are of one kind;
                and with a schedule ``mixture/<number>``, the shares.
        """
        self._step = iteration
        logs: dict[str, float] = {}
        for number, source in enumerate(self.sources):
            if self._wanted(number, iteration):
                found = source.refresh(teacher, student, iteration) or {}
                logs |= {self._prefixes[number] + name: value for name, value in found.items()}
        if len(self.steps) > 1:
            shares = self.shares_at(iteration)
            logs |= {f'mixture/{number}': float(share) for number, share in enumerate(shares)}
        return logs

    def _wanted(self, number: int, iteration: int) -> bool:
        """Whether a part has a share now or later."""
        later = self.shares[self.steps > iteration, number]
        return bool(self.shares_at(iteration)[number] > 0 or (later > 0).any())

    def shares_at(self, step: int) -> np.ndarray:
        """The share of each part after ``step`` training steps, ``[sources]``, adding up to 1."""
        shares = np.array([np.interp(step, self.steps, part) for part in self.shares.T])
        learns, retreats = self._learns(), int(self.retreats)
        rest = shares[~learns].sum()
        if not retreats or not 0 < rest < 1:
            return shares
        kept = (1 - rest) * 0.5**retreats
        return shares * np.where(learns, kept / (1 - rest), (1 - kept) / rest)

    def _learns(self) -> np.ndarray:
        """Which parts make images in their refreshes, and can collapse."""
        return np.array([_makes_images(source) for source in self.sources])

    def on_collapse(self, reasons: Sequence[str]) -> str | None:
        """Halve the share of the parts that learn; where there are no others, ask each of them."""
        learns, before = self._learns(), self.shares_at(self._step)
        if 0 < before[learns].sum() < 1:
            self.retreats += 1
            after = self.shares_at(self._step)
            return (
                f'MixtureSource draws a share of {after[learns].sum():g} from the sources that '
                f'learn, not {before[learns].sum():g}'
            )
        found = [source.on_collapse(reasons) for source in self.sources]
        return '; '.join(done for done in found if done) or None

    def which(self, g: int) -> int:
        """The part that sample ``g`` comes from at the present step."""
        ends = np.cumsum(self.shares_at(self._step))
        place = self.rng('mixture', g).random() * ends[-1]
        return min(int(np.searchsorted(ends, place, 'right')), len(ends) - 1)

    def _split(self, items: list[dict]) -> list[tuple[SyntheticSource, list[int]]]:
        """The parts that give something, and the positions of what each gives."""
        owners = np.array([self.which(item['g']) for item in items])
        pairs = ((s, np.flatnonzero(owners == n).tolist()) for n, s in enumerate(self.sources))
        return [(source, mine) for source, mine in pairs if mine]

    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """Each item from its own part, in the order of ``items``."""
        images: list[Tensor | None] = [None] * len(items)
        found: list[tuple[list[int], Targets]] = []
        for source, mine in self._split(items):
            drawn, targets = source.draw([items[i] for i in mine])
            found.append((mine, targets))
            for i, image in zip(mine, drawn, strict=True):
                images[i] = image
        return torch.stack(images), joined_targets(len(items), found)

    def draw_for(self, items: list[dict], labels: np.ndarray) -> Tensor:
        """Likewise, when each is to show a given class."""
        images: list[Tensor | None] = [None] * len(items)
        for source, mine in self._split(items):
            drawn = source.draw_for([items[i] for i in mine], np.asarray(labels)[mine])
            for i, image in zip(mine, drawn, strict=True):
                images[i] = image
        return torch.stack(images)


def _makes_images(source: SyntheticSource) -> bool:
    """Whether it, or a source within it, does; one that mixes or keeps others' images does not."""
    parts = (part for part in source.modules() if isinstance(part, SyntheticSource))
    return any(
        type(part).refresh is not SyntheticSource.refresh for part in parts if not part.passes_on
    )


def _shares(count: int, schedule: Sequence[tuple[int, Sequence[float]]]) -> np.ndarray:
    """Shares at the points of a schedule, ``[points, count]``, each row adding up to 1."""
    steps = [step for step, _ in schedule]
    if not schedule or steps != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(
            'MixtureSource: schedule must be pairs (step, weights) with steps that rise from 0 or '
            f'later, got the steps {steps}.'
        )
    for step, weights in schedule:
        if len(weights) != count or not count:
            raise ValueError(
                f'MixtureSource: {len(weights)} weights for {count} sources (step {step}); there '
                'must be at least one source, and a weight of each.'
            )
        if min(weights) < 0 or not 0 < sum(weights) < float('inf'):
            raise ValueError(
                'MixtureSource: weights must not be negative, nor all zero, got '
                f'{list(weights)} (step {step}).'
            )
    shares = np.array([weights for _, weights in schedule], np.float64)
    shares /= shares.sum(1, keepdims=True)
    unused = np.flatnonzero(shares.max(0) == 0).tolist()
    if unused:
        raise ValueError(
            f'MixtureSource: sources {unused} never have a weight above 0: leave them out.'
        )
    return shares


def joined_targets(count: int, found: list[tuple[list[int], Targets]]) -> Targets:
    """Targets of a batch from those of its parts: what every part has, and any known answers."""

    def in_order(name: str) -> list | None:
        values: list = [None] * count
        for mine, targets in found:
            part = getattr(targets, name)
            if part is None:
                return None
            for i, value in zip(mine, part, strict=True):
                values[i] = value
        return values

    labels, boxes, box_labels = (in_order(name) for name in ('labels', 'boxes', 'box_labels'))
    return Targets(
        labels=None if labels is None else torch.stack(labels),
        boxes=None if box_labels is None else boxes,
        box_labels=None if boxes is None else box_labels,
        answers=_joined_answers(count, found),
    )


def _joined_answers(count: int, found: list[tuple[list[int], Targets]]) -> Tensor | None:
    known = [(mine, targets.answers) for mine, targets in found if targets.answers is not None]
    if not known:
        return None
    answers = known[0][1].new_full((count, known[0][1].shape[1]), float('nan'))
    for mine, values in known:
        answers[mine] = values
    return answers
