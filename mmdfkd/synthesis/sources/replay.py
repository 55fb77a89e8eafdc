from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmengine.dist import get_dist_info
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Response, Targets
from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.losses.kl import kl_divergence
from mmdfkd.registry import MODELS, TASK_UTILS

from ..frozen import frozen
from ..priors.context import SynthesisContext
from .banked import BankedSource, bank_settings
from .mixture import joined_targets

#: Indices of the images to keep start here: no random numbers are shared with images that are
#: drawn.
_OFFSET = 1 << 43
#: Indices of the views whose answers are kept.
_VIEWS = 1 << 44
_LABELS = (None, 'source', 'teacher')


@MODELS.register_module()
class ReplaySource(BankedSource):
    """A replay bank around another source: some of its images are kept and drawn again.

    ``prefill`` images are kept before the first step, when no student has a say yet, and ``batch``
    more every so many steps. Draws come from the bank (``share``) and, fresh, from the inner
    source. A source that learns forgets; its bank does not.

    With ``bank=dict(policy='disagreement')`` both networks are compared on ``measure`` images of
    the bank from time to time, those first that would be drawn most: the bank prefers images on
    which teacher and student differ, the less the older they are.

    **Kept answers** (``answers``) spare the teacher's forward: there, and in the training step
    where its heads read nothing else of the teacher. That takes images that are drawn as they were
    answered: without augmentation, or in one of ``views`` augmentations of each whose seeds are
    kept with their answers (TinyViT, Wu et al., ECCV 2022).

    Args:
        source (Mapping): Config of the inner source; one that needs no rendered items.
        prefill (int): Images kept before the first step.
        every (int): Training steps between two further batches; 0 for none.
        batch (int): Images that are kept at once, of all processes together.
        share (float): Share of the draws that come from the bank, once it has images.
        bank (Mapping | None): ``capacity`` (4096) and further settings of
            :class:`~mmdfkd.synthesis.bank.ReplayBank`.
        labels (str | None): What is kept as the image's target: ``'source'``, what the inner source
            meant to show (in every image, then); ``'teacher'``, the class it sees; None, nothing.
            ``bank=dict(balance_classes=True)`` draws by it.
        answers (bool): Whether a classifier's logits are kept with the images; see ``topk`` of the
            bank.
        views (int): With ``answers``: how many augmentations of an image are answered when it is
            kept; draws from the bank are these. 0 augments every draw anew, and the answers are
            those of the image itself.
        measure (int): Images compared at once, of each process, for the policy
            ``'disagreement'``.
        measure_every (int): Training steps between two comparisons.
        augment (Mapping | None): Config of an augmentation of the draws from the bank.

    Raises:
        ValueError: If an argument makes no sense.
        TypeError: If the inner source takes its images from the dataset.
    """

    measures_disagreement = True
    passes_on = True

    def __init__(
        self,
        source: Mapping,
        prefill: int = 1024,
        every: int = 10,
        batch: int = 64,
        share: float = 0.5,
        bank: Mapping | None = None,
        labels: str | None = None,
        answers: bool = False,
        views: int = 0,
        measure: int = 64,
        measure_every: int = 10,
        augment: Mapping | None = dict(type='mmdfkd.LightAugment'),
    ) -> None:
        super().__init__()
        for name, value in dict(batch=batch, measure=measure, measure_every=measure_every).items():
            if value < 1:
                raise ValueError(f'ReplaySource: {name} must be at least 1, got {value}.')
        if prefill < 0 or every < 0 or prefill + every == 0:
            raise ValueError(
                f'ReplaySource: keeps no image with prefill={prefill} and every={every}: set one '
                'of them above 0.'
            )
        if not 0 <= share <= 1:
            raise ValueError(f'ReplaySource: share is from 0 to 1, got {share}.')
        if labels not in _LABELS:
            raise ValueError(f'ReplaySource: labels must be one of {_LABELS}, got {labels!r}.')
        if views < 0 or (views and not (answers and augment)):
            raise ValueError(
                f'ReplaySource: views={views} are augmentations of which the answers are kept: it '
                'is at least 0, and above 0 it takes answers=True and an augment.'
            )
        self.source = MODELS.build(source)
        if self.source.needs_items:
            raise TypeError(
                f'ReplaySource: {type(self.source).__name__} takes its images from the dataset, '
                'which renders those of a step only: use a source that makes its own, such as '
                'mmdfkd.PooledSource.'
            )
        self.prefill = prefill
        self.every = every
        self.batch = batch
        self.share = share
        self.bank_cfg = bank_settings('ReplaySource', bank)
        self.labels = labels
        self.answers = answers
        self.views = views
        self.gives_answers = answers and (views > 0 or augment is None)
        self.measure = measure
        self.measure_every = measure_every
        self.augment = None if augment is None else TASK_UTILS.build(augment)
        self._step = 0
        # Images kept so far, by all processes: the number of the next.
        self.register_buffer('made', torch.zeros((), dtype=torch.int64))

    def prepare(
        self,
        teacher: Adapter,
        *,
        seed: int,
        image_size: tuple[int, int],
        device: torch.device | str,
    ) -> None:
        """Prepare the inner source, in a folder of its own, and open the bank.

        Raises:
            ValueError: If the bank does not fit into memory or on disk, or would keep what this
                teacher has not.
        """
        super().prepare(teacher, seed=seed, image_size=image_size, device=device)
        if (self.answers or self.labels == 'teacher') and teacher.family != 'classifier':
            raise ValueError(
                f"ReplaySource: answers and labels='teacher' are of classifiers, not of a "
                f"{teacher.family} network: set answers=False and labels=None or 'source'."
            )
        self.source.folder = None if self.folder is None else self.folder / 'start'
        self.source.prepare(teacher, seed=seed, image_size=image_size, device=device)
        capacity = max(4096, self.prefill)
        self.open_bank(self.folder, **{'capacity': capacity, **self.bank_cfg})
        self.restore_bank()

    def fill(self, teacher: Adapter) -> None:
        """Fill the inner source, and keep the first images."""
        self.source.fill(teacher)
        self.keep_replaced()
        for first in range(0, self.prefill, self.batch):
            self._keep(min(self.batch, self.prefill - first), teacher, 0)
        self._replaces = True

    def refresh(self, teacher: Adapter, student: Adapter, iteration: int) -> dict[str, float]:
        """Refresh the inner source; keep a batch and compare the networks if it is time.

        Returns:
            dict[str, float]: What the inner source logs, and of the bank when it changed
                ``replay/images`` and ``replay/disagreement``.
        """
        self._step = iteration
        logs = dict(self.source.refresh(teacher, student, iteration) or {})
        self.drop_replaced()
        if self.every and iteration % self.every == 0:
            self._keep(self.batch, teacher, iteration)
            logs['replay/images'] = float(len(self.bank))
        due = self.bank.policy == 'disagreement' and iteration % self.measure_every == 0
        if due and len(self.bank):
            logs['replay/disagreement'] = self._compare(teacher, student, iteration)
        return logs

    @torch.no_grad()
    def _keep(self, count: int, teacher: Adapter, iteration: int) -> None:
        """Put ``count`` images of the inner source into the bank, this process its part of them."""
        rank, world = get_dist_info()
        first = int(self.made)
        mine = list(range(first, first + count))[rank::world]
        self.made += count
        if not mine:
            return
        images, shown = self.source.draw([dict(g=_OFFSET + number) for number in mine])
        # As they are kept, in whole grey levels: the answers are to these.
        images = images.mul(255).round_().clamp_(0, 255).to(torch.uint8)
        targets, found = Targets(), {}
        if self.labels == 'source':
            targets = Targets(shown.labels, shown.boxes, shown.box_labels)
        if self.answers or self.labels == 'teacher':
            whole = images.float().div_(255)
            logits = None
            if self.labels == 'teacher' or not self.views:
                logits = self._asked(teacher, whole)
            if self.labels == 'teacher':
                targets = Targets(labels=logits.argmax(1))
            if self.answers and self.views:
                found = self._viewed(teacher, whole, mine)
            elif self.answers:
                found = dict(logits=logits)
        self.bank.append(images, targets, iteration=iteration, answers=found)

    @staticmethod
    def _asked(teacher: Adapter, images: Tensor) -> Tensor:
        with frozen(teacher.net):
            return teacher.answer(teacher.encode(images), None).logits

    def _viewed(self, teacher: Adapter, images: Tensor, numbers: list[int]) -> dict[str, Tensor]:
        """The seeds of each image's views and the answers to them."""
        seeds = torch.tensor(numbers)[:, None] * self.views + torch.arange(self.views) + _VIEWS
        views = (self.augment(images, self.seed, column.tolist()) for column in seeds.T)
        answers = torch.stack([self._asked(teacher, view) for view in views], 1)
        return dict(logits=answers, seeds=seeds)

    def _view(
        self, images: Tensor, answers: Mapping[str, Tensor], which: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """One view of each image, and the answers to them."""
        rows, which = torch.arange(len(images)), torch.as_tensor(which)
        seeds = answers['seeds'].cpu()[rows, which].tolist()
        logits = answers['logits']
        return self.augment(images, self.seed, seeds), logits[rows, which.to(logits.device)]

    @torch.no_grad()
    def _compare(self, teacher: Adapter, student: Adapter, iteration: int) -> float:
        """Tell the bank how far the networks differ on some of its images; their mean."""
        rng = stream('replay-measure', self.seed, iteration, get_dist_info()[0])
        count = min(self.measure, len(self.bank))
        ids = np.unique(self.bank.pick(rng, count, iteration))
        images, _, answers = self.bank.take(ids, self.device)
        logits = None if answers is None else answers['logits']
        if self.views:
            images, logits = self._view(images, answers, [0] * len(images))
        with frozen(teacher.net, student.net):
            ctx = SynthesisContext(images, Targets(), teacher, student)
            if logits is not None:
                ctx.teacher_response = Response(logits=logits)
            else:
                ctx.probe = teacher.propose(ctx.teacher_memory)
            mine, theirs = ctx.student_response.logits, ctx.teacher_response.logits
            values = ctx.by_image(kl_divergence(mine, theirs, reduction='none'))
        values = values.float().clamp_min(0)
        self.bank.set_disagreement(ids, values)
        return float(values.mean())

    def on_collapse(self, reasons: Sequence[str]) -> str | None:
        """What the inner source does: the bank keeps what was made before."""
        return self.source.on_collapse(reasons)

    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """``share`` of the images from the bank, the others fresh from the inner source."""
        chosen = self._chosen(items)
        rest = [position for position in range(len(items)) if position not in chosen]
        if not chosen:
            return self.source.draw(items)
        taken, targets, answers = self.bank.take(np.array(list(chosen.values())), self.device)
        indices = [items[p]['g'] for p in chosen]
        if self.views:
            which = [int(self.rng('replay-view', g).integers(self.views)) for g in indices]
            taken, targets.answers = self._view(taken, answers, which)
        elif self.augment is not None:
            taken, targets = self.augmented(taken, targets, indices)
        elif answers is not None:
            targets.answers = answers['logits']
        images = taken.new_empty((len(items), *taken.shape[1:]))
        images[list(chosen)] = taken
        found = [(list(chosen), targets)]
        if rest:
            fresh, targets = self.source.draw([items[p] for p in rest])
            images[rest] = fresh.to(images)
            found.append((rest, targets))
        return images, joined_targets(len(items), found)

    def draw_for(self, items: list[dict], labels: np.ndarray) -> Tensor:
        """The inner source's; it knows what shows a class."""
        return self.source.draw_for(items, labels)

    def _chosen(self, items: list[dict]) -> dict[int, int]:
        """Positions of the draws that come from the bank, and the ids of their images."""
        if self.bank is None or not len(self.bank):
            return {}
        ids, heights = self.bank.ids, self.bank.weights(self._step).cumsum()
        chosen = {}
        for position, item in enumerate(items):
            whether, which = self.rng('replay', item['g']).random(2)
            if whether < self.share:
                place = np.searchsorted(heights, which * heights[-1], 'right')
                chosen[position] = int(ids[min(int(place), len(ids) - 1)])
        return chosen
