import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, get_dist_info
from mmengine.logging import print_log
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.registry import TASK_UTILS
from mmdfkd.utils.arguments import accepted_arguments, check_arguments

from ..bank import ReplayBank
from ..symmetry import ASKED, SYMMETRIES, held_symmetries
from .base import SyntheticSource
from .retreat import RetreatingSource


def bank_settings(owner: str, settings: Mapping | None) -> dict:
    """Settings of a source's bank, checked before anything is made.

    Args:
        owner (str): Name of the source, for the message.
        settings (Mapping, optional): Of :class:`~mmdfkd.synthesis.bank.ReplayBank`.

    Raises:
        TypeError: If one is unknown.
        ValueError: If one makes no sense.
    """
    settings = dict(settings or {})
    own = ('image_size', 'folder', 'shard')
    names = [name for name in accepted_arguments(ReplayBank) if name not in own]
    check_arguments(f'{owner}: bank', settings, names)
    # How many fit is seen once the images' size is known.
    ReplayBank((1, 1), **{**settings, 'capacity': 1})
    return settings


class BankedSource(SyntheticSource):
    """A source that keeps images in a replay bank, whose index is in the checkpoint.

    Attributes:
        bank: Opened when the source is prepared; None where it keeps no images.
        augment: Of the draws from the bank, or None.
        measures_disagreement: Whether it tells the bank on which images the networks differ.
    """

    augment: Callable | None = None
    measures_disagreement = False

    def __init__(self) -> None:
        super().__init__()
        self.bank: ReplayBank | None = None
        self._restored: dict | None = None
        # Of all processes together, while a checkpoint is about to be written.
        self._gathered: dict | None = None
        # Whether the folder may hold images of an earlier run.
        self._replaces = False

    def open_bank(self, folder: str | Path | None, **settings) -> None:
        """Open this process's part of the bank.

        Args:
            folder (str | Path, optional): Where its images lie; None keeps them in memory.
            **settings: Of :class:`~mmdfkd.synthesis.bank.ReplayBank`.

        Raises:
            ValueError: If it does not fit, or its policy needs what nobody measures.
        """
        if settings.get('policy') == 'disagreement' and not self.measures_disagreement:
            raise ValueError(
                f"{type(self).__name__}: bank=dict(policy='disagreement') needs teacher and "
                'student to be compared on the images of the bank, which this source does not do. '
                "Use 'uniform' or 'recent', or put an mmdfkd.ReplaySource with this policy around "
                'it.'
            )
        self.bank = ReplayBank(self.image_size, folder=folder, shard=get_dist_info(), **settings)

    @property
    def owns_files(self) -> bool:
        """Whether its bank has files, and they are this run's own."""
        return None not in (self.bank, self.folder) and self.bank.folder == self.folder

    def restore_bank(self) -> None:
        """Once there are both a bank and what a checkpoint says of it."""
        if self.bank is not None and self._restored is not None:
            self.bank.restore(self._restored)
            self._restored = None

    def bank_index(self) -> dict | None:
        """For the checkpoint; the images lie in the bank's own files.

        Of this process alone, unless :meth:`gather_index` was called before by all of them.
        """
        if self._restored is not None or self.bank is None:
            return self._restored
        return self.bank.index() if self._gathered is None else self._gathered

    def gather_index(self) -> None:
        """Exchange the indices with the other processes, all of which have to call this."""
        if self.bank is not None and self._restored is None:
            self._gathered = ReplayBank.merge(all_gather_object(self.bank.index()))

    def forget_gathered(self) -> None:
        """The bank may change: :meth:`bank_index` is again of what it then is."""
        self._gathered = None

    def augmented(
        self, images: Tensor, targets: Targets, indices: Sequence[int]
    ) -> tuple[Tensor, Targets]:
        """Images of the bank as they are drawn, and what they then show.

        Boxes go with the pixels; an augmentation that cannot say where (it has no ``follow``)
        leaves none.

        Args:
            images (Tensor): ``[n, 3, H, W]``.
            targets (Targets): What they show, left as it is.
            indices (Sequence[int]): The samples' global indices.
        """
        if self.augment is None:
            return images, targets
        moved = self.augment(images, self.seed, indices)
        if targets.boxes is None:
            return moved, targets
        if not hasattr(self.augment, 'follow'):
            return moved, replace(targets, boxes=None, box_labels=None)
        size = (images.shape[-2], images.shape[-1])
        boxes, kept = self.augment.follow(targets.boxes, self.seed, indices, size)
        labels = [own[mine] for own, mine in zip(targets.box_labels, kept, strict=True)]
        return moved, replace(targets, boxes=boxes, box_labels=labels)

    def keep_replaced(self) -> None:
        """Before the first images: an earlier run's stay valid until this run steps."""
        if self.owns_files:
            self.bank.hold_manifest()

    def drop_replaced(self) -> None:
        """Delete what an earlier run left in the folder, once this run steps."""
        if self._replaces and len(self.bank):
            self.bank.publish()
            self.bank.prune()
            self._replaces = False

    def get_extra_state(self) -> dict:
        """The bank's index; its images lie in its own files."""
        return self.bank_index() or {}

    def set_extra_state(self, state: dict) -> None:
        """Take the bank's index from a checkpoint."""
        self._restored = state or None
        self.restore_bank()


class InvertingSource(RetreatingSource, BankedSource):
    """A source that makes images by gradient steps on pixels: a set once, or some now and then.

    ``images`` are made before the first step; with ``every``, ``batch`` more are made each so many
    training steps. They lie in the bank. Draws come from it (``share``) and from an inner source.

    Args:
        source (SyntheticSource | None): The inner source.
        images (int): Images made before the first step.
        every (int): Training steps between two further batches; 0 for none.
        batch (int): Images, or trajectories, optimised at once.
        share (float): Share of the draws that come from the bank.
        augment (Mapping | None): Config of the augmentation of the draws from the bank.

    Attributes:
        made: Images made so far, by all processes: the number of the next.

    Raises:
        ValueError: If an argument makes no sense.
    """

    #: Its name in the log, and that of its draws' random numbers.
    title: str
    purpose: str

    def __init__(
        self,
        source: SyntheticSource | None,
        images: int,
        every: int,
        batch: int,
        share: float,
        augment: Mapping | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if images < 0 or every < 0 or images + every == 0:
            raise ValueError(
                f'{name}: makes no image with images={images} and every={every}: set one of them '
                'above 0.'
            )
        if not 0 <= share <= 1:
            raise ValueError(f'{name}: share is from 0 to 1, got {share}.')
        self.source = source
        self.images = images
        self.every = every
        self.batch = batch
        self.share = share
        self.augment = None if augment is None else TASK_UTILS.build(augment)
        # Images of one trajectory.
        self.yields = 1
        self.register_buffer('made', torch.zeros((), dtype=torch.int64))
        # Of each symmetry, how much the teacher holds it; below 0 while it has not been asked.
        self.register_buffer('held', torch.full((len(SYMMETRIES),), -1.0))

    @property
    def needs_items(self) -> bool:
        """As the inner source."""
        return self.source is not None and self.source.needs_items

    def prepare_inner(self, teacher: Adapter) -> None:
        """Prepare the inner source, in a folder of its own."""
        if self.source is not None:
            self.source.folder = None if self.folder is None else self.folder / 'start'
            self.source.prepare(
                teacher, seed=self.seed, image_size=self.image_size, device=self.device
            )

    def fill(self, teacher: Adapter) -> None:
        """Make the first images; a prior that asks the student is answered by the teacher."""
        if self.source is not None:
            self.source.fill(teacher)
        self.keep_replaced()
        self.refresh(teacher, teacher, 0)
        self._replaces = True

    def refresh(self, teacher: Adapter, student: Adapter, iteration: int) -> dict[str, float]:
        """Make the first images if they are not there, and a further batch if it is time.

        Returns:
            dict[str, float]: Of the last batch, see :meth:`make`.
        """
        logs = {}
        if self.source is not None:
            logs = self.source.refresh(teacher, student, iteration)
        self.drop_replaced()
        due = max(self.images - int(self.made), 0)
        if self.every and iteration and iteration % self.every == 0:
            due += self.batch * self.yields
        if due:
            logs.update(self._make_all(due, teacher, student, iteration))
        self.ask_symmetries(teacher)
        return logs

    def _make_all(
        self, due: int, teacher: Adapter, student: Adapter, iteration: int
    ) -> dict[str, float]:
        """Make so many images, batch by batch, and say how far it is."""
        logs = {}
        start, told, found = time.perf_counter(), time.perf_counter(), []
        total = due
        while due:
            count = min(self.batch * self.yields, due)
            made = self.make(count, teacher, student, iteration)
            due -= count
            if not made:
                continue
            logs.update(made)
            found.append(made)
            now = time.perf_counter()
            if due and now - told > 10:
                done = total - due
                print_log(
                    f'{self.title}: {done} of {total} images, '
                    f'{(now - start) / done * due:.0f} s to go; {self.success(found)}',
                    'current',
                )
                told = now
        self.finish(found, total)
        if found and total > self.batch * self.yields:
            print_log(
                f'{self.title}: {total} images in {time.perf_counter() - start:.0f} s; '
                f'{self.success(found)}',
                'current',
            )
        return logs

    def ask_symmetries(self, teacher: Adapter) -> None:
        """Once there are images: in the draws, flip and turn them only as the teacher allows."""
        if self.held[0] >= 0 or not hasattr(self.augment, 'restrict'):
            return
        # All processes ask at once: some may have got no image yet.
        if not int(self.made):
            return
        images, targets, _ = self.bank.take(self.bank.ids[:ASKED], self.device)
        shares = held_symmetries(teacher, images, targets)
        self.held.copy_(torch.tensor([shares[name] for name in SYMMETRIES]))
        self._restrict()
        told = ', '.join(f'{name} {share:.0%}' for name, share in shares.items())
        print_log(
            f'{self.title}: of what the teacher finds it still finds, flipped or turned: {told}; '
            f'used in the draws: {", ".join(self.augment.used) or "none"}',
            'current',
        )

    def _restrict(self) -> None:
        if self.held[0] >= 0 and hasattr(self.augment, 'restrict'):
            self.augment.restrict(dict(zip(SYMMETRIES, self.held.tolist(), strict=True)))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # Runs that are older than the buffer used every flip and turn; so does their rest.
        state_dict.setdefault(prefix + 'held', torch.ones(len(SYMMETRIES)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._restrict()

    @abstractmethod
    def make(
        self, count: int, teacher: Adapter, student: Adapter, iteration: int
    ) -> dict[str, float]:
        """Make ``count`` images, this process its part of them, and put them into the bank.

        Returns:
            dict[str, float]: Values to log; empty where this process had none to make.
        """

    @abstractmethod
    def success(self, made: Sequence[Mapping[str, float]]) -> str:
        """What the teacher says of the batches made, for the log: part of a sentence."""

    def finish(self, made: Sequence[Mapping[str, float]], total: int) -> None:
        """Look at what the batches gave, and let go of what is no longer needed."""

    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """The inner source's images, ``share`` of them replaced by images of the bank.

        Where all are the bank's, with the classes or boxes that they were made for.
        """
        chosen = {}
        if self.bank is not None and len(self.bank):
            for position, item in enumerate(items):
                rng = self.rng(self.purpose, item['g'])
                if rng.random() < self.share_now:
                    chosen[position] = int(self.bank.pick(rng, 1)[0])
        if not chosen:
            return self.source.draw(items)[0], Targets()
        taken, shown, _ = self.bank.take(list(chosen.values()), self.device)
        taken, shown = self.augmented(taken, shown, [items[p]['g'] for p in chosen])
        rest = [p for p in range(len(items)) if p not in chosen]
        images = taken.new_empty((len(items), *taken.shape[1:]))
        images[list(chosen)] = taken
        if rest:
            images[rest] = self.source.draw([items[p] for p in rest])[0]
            return images, Targets()
        return images, shown
