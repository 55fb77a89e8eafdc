"""Images that were expensive to make, kept to be drawn again."""

import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmdfkd.adapters.observation import Targets
from mmdfkd.utils.checkpoint import sha256
from mmdfkd.utils.memory import check_memory
from mmdfkd.utils.run_files import write_json

from .replay.index import FORMAT, MANIFEST, SEGMENT, Segment, manifests, merge, read_index
from .replay.records import Answers, classes_shown, decode, encode, fields
from .replay.sampling import balance, priority_weights, recent_weights, systematic
from .replay.segments import Arrays, BankError, pack, parse, write

#: Mapped files keep a handle open, of which a process has few.
_MOST_MAPPED = 64


class ReplayBank:
    """Synthetic images with their targets and the teacher's answers, to be drawn again.

    Every append becomes one immutable segment: a file in the safetensors layout, named by its
    content, that appears whole or not at all. A checkpoint keeps :meth:`index`, which names the
    segments and their checksums; :meth:`restore` goes back to exactly that bank. Segments written
    after the checkpoint are ignored, and a resumed run that makes the same images makes the same
    files. A power cut may lose what the system had not yet put on disk; the checksum tells. Without
    a folder everything is in memory and the index carries the content.

    Images have ids that never change. Process ``rank`` of ``world`` owns the ids with ``id % world
    == rank``: it gives these to its images, draws only these, and writes only files with its rank
    in the name. Gather the indices of all processes with :meth:`merge` for the checkpoint.

    Privacy: **images optimised through a teacher may reveal what it was trained on.** Treat a
    bank's folder as you treat the training data; :meth:`delete` removes its files. Without a folder
    the images lie in the checkpoints. Nothing is written outside of the folder.

    Args:
        image_size (tuple[int, int]): Height and width of every image, in pixels.
        capacity (int): Most images, of all processes together. Beyond it the oldest segments are no
            longer drawn; their files stay until :meth:`prune`, which a run calls when it has
            written a checkpoint. It is what ``folder`` is checked for.
        folder (str | Path | None): Where segments are written; None keeps them in memory.
        max_bytes (int): Most memory. With a folder, what does not fit is mapped from the files.
        policy (str): ``'uniform'``; ``'recent'``: a share of the draws comes from the newest
            images; or ``'disagreement'``: in proportion to ``disagreement ** power * 0.5 ** (age /
            half_life)``.
        recent_share (float): The share of ``'recent'``.
        recent_images (int): How many images of this process are the newest.
        power (float): See ``policy``; 0 draws by age alone.
        half_life (float): In iterations.
        balance_classes (bool): Give every class that images show the same number of draws; within a
            class the policy holds. An image counts for the class of each of its boxes, and those
            without any share one more class.
        topk (int | None): Keep only so many of the classifier's ``logits``, as probabilities
            (:func:`~mmdfkd.synthesis.replay.sparse.sparse_probabilities`). They come back as dense
            log-probabilities, which serve as logits.
        full_precision (Sequence[str]): Answers to keep in ``float32``, such as boxes of large
            images; others are kept in ``float16``.
        shard (tuple[int, int]): This process and the number of processes.

    Raises:
        ValueError: If an argument makes no sense, or the bank does not fit into memory or on disk.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        capacity: int,
        folder: str | Path | None = None,
        max_bytes: int = 2 << 30,
        policy: str = 'uniform',
        recent_share: float = 0.5,
        recent_images: int = 256,
        power: float = 1.0,
        half_life: float = 2000.0,
        balance_classes: bool = False,
        topk: int | None = None,
        full_precision: Sequence[str] = (),
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.rank, self.world = (int(part) for part in shard)
        if policy not in ('uniform', 'recent', 'disagreement'):
            raise ValueError(
                f"ReplayBank: policy must be 'uniform', 'recent' or 'disagreement', got {policy!r}."
            )
        if not 0 <= self.rank < self.world:
            raise ValueError(f'ReplayBank: shard must be (rank, world), got {tuple(shard)}.')
        if not 0 <= recent_share <= 1:
            raise ValueError(f'ReplayBank: recent_share is from 0 to 1, got {recent_share}.')
        if recent_images < 1 or half_life <= 0 or power < 0 or (topk is not None and topk < 1):
            raise ValueError(
                'ReplayBank: recent_images and topk must be at least 1, half_life positive and '
                f'power not negative; got {recent_images}, {topk}, {half_life} and {power}.'
            )
        if capacity < self.world:
            raise ValueError(
                f'ReplayBank: capacity {capacity} leaves no image for some of {self.world} '
                f'processes: set capacity to at least {self.world}.'
            )
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.capacity = capacity
        self.folder = None if folder is None else Path(folder)
        self.max_bytes = max_bytes
        self.policy = policy
        self.recent_share = recent_share
        self.recent_images = recent_images
        self.power = power
        self.half_life = half_life
        self.balance_classes = balance_classes
        self.topk = topk
        self.full_precision = frozenset(full_precision)
        self._clear()
        self._check_fits(3 * self.image_size[0] * self.image_size[1])

    def _clear(self) -> None:
        self._segments: list[Segment] = []
        self._next_id = self.rank
        self._fields: dict | None = None
        self._held = False
        self._mapped: OrderedDict[str, Arrays] = OrderedDict()
        self._list()

    def _check_fits(self, image_bytes: int) -> None:
        """Whether ``capacity`` images of so many bytes have a place."""
        need = self.capacity * image_bytes
        what = f'ReplayBank: {self.capacity} images of {image_bytes:,} bytes need {_size(need)}'
        if self.folder is None:
            # Memory is each process's own.
            room = self.max_bytes * self.world
            if need > room:
                raise ValueError(
                    f'{what}, more than max_bytes allows ({_size(self.max_bytes)} in each of '
                    f'{self.world} processes): lower capacity to {room // image_bytes}, raise '
                    'max_bytes, or set a folder, from which images are mapped.'
                    if room >= image_bytes
                    else f'{what}, and max_bytes ({_size(self.max_bytes)}) does not hold even one: '
                    'raise max_bytes or set a folder.'
                )
            check_memory(
                need // self.world,
                f'ReplayBank: {self.capacity // self.world} images of {image_bytes:,} bytes',
                'lower capacity, or set a folder, from which images are mapped',
            )
            return
        place = self.folder
        while not place.exists():
            place = place.parent
        held = sum(path.stat().st_size for path in self.folder.glob('segment-*.safetensors'))
        room = shutil.disk_usage(place).free + held
        if need > room:
            raise ValueError(
                f'{what}, but {self.folder} has room for {_size(room)}: lower capacity to '
                f'{room // image_bytes} or set a folder on a larger disk.'
            )

    # ---------------------------------------------------------------- what there is

    def __len__(self) -> int:
        """Number of images that this process can draw."""
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """What this process can draw, oldest first, ``int64 [len(self)]``."""
        return self._ids.copy()

    @property
    def nbytes(self) -> int:
        """Size of all segments that are drawn from, in memory or not."""
        return sum(segment.nbytes for segment in self._segments)

    @property
    def resident_bytes(self) -> int:
        """How much of it is in memory."""
        return sum(segment.nbytes for segment in self._segments if segment.arrays is not None)

    def made_at(self, ids: np.ndarray) -> np.ndarray:
        """The iteration that made each image, ``[n]``."""
        made = np.array([segment.iteration for segment in self._segments], np.int64)
        return made[self._segment_of[self._find(ids)]]

    def disagreement(self, ids: np.ndarray) -> np.ndarray:
        """The last value set for each image, ``float32 [n]``; NaN where there is none."""
        values = [segment.disagreement for segment in self._segments]
        return np.concatenate([np.zeros(0, np.float32), *values])[self._flat[self._find(ids)]]

    def set_disagreement(self, ids: np.ndarray, values: np.ndarray | Tensor) -> None:
        """Say how much teacher and student differ on images, for the policy.

        Args:
            ids (np.ndarray): Of images of this process, ``[n]``.
            values (np.ndarray | Tensor): Finite and not negative, ``[n]``.

        Raises:
            ValueError: If a value is neither.
            IndexError: If an image is not there.
        """
        values = _values(values, len(ids))
        at = self._find(ids)
        for s, r, value in zip(self._segment_of[at], self._row_of[at], values, strict=True):
            self._segments[s].disagreement[r] = value

    def _list(self) -> None:
        """Which ids there are, and where."""
        self._segments.sort(key=lambda segment: segment.first)
        counts = [segment.count for segment in self._segments]
        none = np.zeros(0, np.int64)
        every = np.concatenate([none, *(segment.ids for segment in self._segments)])
        own = np.flatnonzero(every % self.world == self.rank)
        # Where a segment was made by another number of processes, ids interleave.
        own = own[np.argsort(every[own], kind='stable')]
        self._ids, self._flat, self._total = every[own], own, len(every)
        self._segment_of = np.repeat(np.arange(len(counts)), counts)[own]
        self._row_of = np.concatenate([none, *(np.arange(count) for count in counts)])[own]

    def _find(self, ids: np.ndarray) -> np.ndarray:
        """Positions of ids in ``self._ids``."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        at = np.searchsorted(self._ids, ids)
        there = at < len(self._ids)
        there[there] = self._ids[at[there]] == ids[there]
        if not there.all():
            raise IndexError(
                f'ReplayBank: image {ids[~there][0]} is not in the bank of process {self.rank} of '
                f'{self.world}: it retired, or another process owns it. Take what pick() returned '
                'before anything is appended.'
            )
        return at

    # ---------------------------------------------------------------- adding

    def append(
        self,
        images: Tensor,
        targets: Targets | None = None,
        *,
        iteration: int,
        answers: Mapping[str, Tensor | Sequence[Tensor]] | None = None,
        disagreement: np.ndarray | Tensor | None = None,
    ) -> np.ndarray:
        """Add images as one segment; the oldest retire if there are too many.

        Every append brings the same fields. Fewer and larger appends cost less.

        Args:
            images (Tensor): ``[n, 3, H, W]``, ``uint8`` or in [0, 1].
            targets (Targets, optional): What they show: labels, or any number of boxes each.
            iteration (int): When they were made.
            answers (Mapping, optional): What the teacher said of them: by name a tensor ``[n,
                ...]``, or ``n`` tensors ``[k_i, ...]``.
            disagreement (np.ndarray | Tensor, optional): ``[n]``; unknown without, and drawn like
                the largest known, so that every image gets its turn.

        Returns:
            np.ndarray: The ids of the images, ``int64 [n]``.

        Raises:
            ValueError: If shapes, ranges or fields are wrong, or they do not fit.
            BankError: If the segment could not be written; the bank is as it was.
        """
        count = len(images)
        if images.shape[1:] != (3, *self.image_size):
            raise ValueError(
                f'ReplayBank: images must be [n, 3, {self.image_size[0]}, {self.image_size[1]}], '
                f'got {list(images.shape)}.'
            )
        if count == 0:
            return np.zeros(0, np.int64)
        if count > self.capacity // self.world:
            raise ValueError(
                f'ReplayBank: {count} images at once are more than the capacity of a process '
                f'({self.capacity} // {self.world}): raise capacity to at least '
                f'{count * self.world} or append fewer.'
            )
        arrays, meta = encode(
            images, targets or Targets(), answers or {}, self.topk, self.full_precision
        )
        self._check_fields(arrays, meta)
        nbytes = sum(array.nbytes for array in arrays.values())
        if self._fields is None:
            self._check_fits(-(-nbytes // count))
        if disagreement is None:
            values = np.full(count, np.nan, np.float32)
        else:
            values = _values(disagreement, count)
        segment = Segment(
            self._next_id, self.world, count, int(iteration), values, nbytes, meta=meta
        )
        self._store(segment, arrays)
        self._fields = fields(arrays, meta)
        self._next_id += self.world * count
        self._settle()
        self._write_manifest()
        return segment.ids

    def _check_fields(self, arrays: Arrays, meta: dict[str, str]) -> None:
        if self._fields is None and self._segments:
            newest = self._segments[-1]
            self._fields = fields(self._open(newest), newest.meta)
        now = fields(arrays, meta)
        if self._fields is not None and now != self._fields:
            differ = sorted(
                key for key in {*now, *self._fields} if now.get(key) != self._fields.get(key)
            )
            raise ValueError(
                'ReplayBank: every append must bring the same fields; '
                + ', '.join(
                    f'{key} is {now.get(key, "missing")}, was {self._fields.get(key, "missing")}'
                    for key in differ
                )
                + '. Bring the same targets and answers, or start another bank.'
            )

    def _store(self, segment: Segment, arrays: Arrays) -> None:
        """Take a segment in; with a folder, once its file is there."""
        if self.folder is not None:
            pieces, digest = pack(arrays, segment.meta)
            writer = segment.first % segment.step
            segment.name = f'segment-r{writer:03d}-{segment.first:08d}-{digest[:12]}.safetensors'
            segment.sha256 = digest
            segment.nbytes = sum(map(len, pieces))
            write(self.folder / segment.name, pieces)
        segment.arrays, segment.verified = arrays, True
        self._segments.append(segment)

    def _settle(self) -> None:
        """Retire what is too old, and leave in memory what may be there."""
        self._list()
        own = np.bincount(self._segment_of, minlength=len(self._segments))
        total, nbytes, retired = own.sum(), self.nbytes, 0
        for segment, count in list(zip(self._segments, own, strict=True))[:-1]:
            crowded = self.folder is None and nbytes > self.max_bytes
            if total <= self.capacity // self.world and not crowded:
                break
            total, nbytes, retired = total - count, nbytes - segment.nbytes, retired + 1
            self._mapped.pop(segment.name, None)
        if retired:
            del self._segments[:retired]
            self._list()
        if self.folder is not None:
            resident = self.resident_bytes
            for segment in self._segments:
                if resident <= self.max_bytes:
                    break
                if segment.arrays is not None:
                    segment.arrays = None
                    resident -= segment.nbytes

    # ---------------------------------------------------------------- drawing

    def weights(self, iteration: int | None = None) -> np.ndarray:
        """Each image's share of the draws, in the order of :attr:`ids`.

        Args:
            iteration (int, optional): Now, for the ages; the newest image's without.

        Returns:
            np.ndarray: ``float64 [len(self)]``, sums to 1.
        """
        count = len(self)
        if not count:
            return np.zeros(0)
        weights = np.ones(count)
        if self.policy == 'recent':
            weights = recent_weights(count, self.recent_images, self.recent_share)
        elif self.policy == 'disagreement':
            made = self.made_at(self._ids)
            now = made.max() if iteration is None else iteration
            ages = np.maximum(now - made, 0)
            values = self.disagreement(self._ids)
            weights = priority_weights(values, ages, self.power, self.half_life)
        if self.balance_classes:
            weights = balance(weights, *self._shown())
        total = weights.sum()
        return weights / total if total > 0 else np.full(count, 1 / count)

    def _shown(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a position in ``self._ids`` and a class that the image shows, -1 for none."""
        place = np.full(self._total, -1)
        place[self._flat] = np.arange(len(self))
        positions, labels, start = [], [], 0
        for segment in self._segments:
            if segment.shown is None:
                segment.shown = classes_shown(self._open(segment))
            rows, shown = segment.shown
            positions.append(place[start + rows])
            labels.append(shown)
            start += segment.count
        positions, labels = np.concatenate(positions), np.concatenate(labels)
        return positions[positions >= 0], labels[positions >= 0]

    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of an image's id and a class that it shows, -1 for none: ``[n]`` each."""
        if not len(self):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        positions, labels = self._shown()
        return self._ids[positions], labels

    def pick(self, rng: np.random.Generator, n: int, iteration: int | None = None) -> np.ndarray:
        """Choose images by the policy.

        Systematic sampling: one random offset, even steps through the shuffled images. Each
        image's expected number of draws is exact, and none is drawn twice unless its share exceeds
        ``1 / n``.

        Args:
            rng (np.random.Generator): The only source of chance.
            n (int): How many.
            iteration (int, optional): See :meth:`weights`.

        Returns:
            np.ndarray: Ids, ``int64 [n]``.

        Raises:
            IndexError: If there is no image.
        """
        if not len(self):
            raise IndexError(
                f'ReplayBank: process {self.rank} of {self.world} has no image to draw: append '
                'some first.'
            )
        return self._ids[systematic(rng, self.weights(iteration), n)]

    def take(
        self, ids: np.ndarray, device: torch.device | str = 'cpu'
    ) -> tuple[Tensor, Targets, Answers | None]:
        """The images of these ids, in their order.

        Args:
            ids (np.ndarray): From :meth:`pick` or :meth:`append`, ``[n]``; repeats are fine.
            device (torch.device | str): Where they are wanted.

        Returns:
            tuple[Tensor, Targets, Answers | None]: ``float32 [n, 3, H, W]`` in [0, 1]; what they
            show; and the teacher's answers in ``float32``, None if there are none. What was a list
            is a list.

        Raises:
            IndexError: If an image is not there.
            BankError: If its file is missing or damaged.
        """
        at = self._find(ids)
        if not len(at):
            images = torch.zeros((0, 3, *self.image_size), device=device)
            return images, Targets(), None
        segment_of, row_of = self._segment_of[at], self._row_of[at]

        def parts() -> Iterator[tuple[np.ndarray, np.ndarray, Arrays, Mapping[str, str]]]:
            for s in np.unique(segment_of):
                where = np.flatnonzero(segment_of == s)
                yield where, row_of[where], self._open(self._segments[s]), self._segments[s].meta

        return decode(parts(), len(at), device)

    def _open(self, segment: Segment) -> Arrays:
        """A segment's arrays: in memory while there is room, else mapped from its file."""
        if segment.arrays is not None:
            return segment.arrays
        if segment.name in self._mapped:
            self._mapped.move_to_end(segment.name)
            return self._mapped[segment.name]
        path = self.folder / segment.name
        if not segment.verified:
            self._verify(segment)
        try:
            mapped = np.asarray(np.memmap(path, np.uint8, 'r'))
        except (OSError, ValueError) as error:
            raise BankError(_mend(f'{path} cannot be read ({error})')) from error
        arrays, segment.meta = parse(mapped, path)
        images = arrays.get('images')
        if images is None or images.shape != (segment.count, 3, *self.image_size):
            raise BankError(_mend(f'{path} does not hold the images that the checkpoint says'))
        if self.resident_bytes + segment.nbytes <= self.max_bytes:
            segment.arrays = {key: np.array(array) for key, array in arrays.items()}
            return segment.arrays
        self._mapped[segment.name] = arrays
        while len(self._mapped) > _MOST_MAPPED:
            self._mapped.popitem(last=False)
        return arrays

    # ---------------------------------------------------------------- checkpoints

    def index(self) -> dict:
        """What a checkpoint keeps: plain numbers, texts and lists, and tensors without a folder.

        Returns:
            dict: For :meth:`restore`; of this process alone, see :meth:`merge`.
        """
        return self._index(values=True, content=self.folder is None)

    def _index(self, values: bool, content: bool) -> dict:
        return dict(
            format=FORMAT,
            image_size=list(self.image_size),
            world=self.world,
            next_ids={str(self.rank): self._next_id},
            segments=[segment.entry(self.rank, values, content) for segment in self._segments],
        )

    @staticmethod
    def merge(indices: Iterable[Mapping]) -> dict:
        """One index of those of all processes, for the checkpoint.

        Args:
            indices (Iterable[Mapping]): From :meth:`index`, one of each process.

        Returns:
            dict: For every process's :meth:`restore`, of the same or another number of processes.

        Raises:
            BankError: If they are not of one bank.
        """
        return merge(indices)

    @staticmethod
    def latest_index(folder: str | Path) -> dict:
        """The index of what a folder holds, for a run that has no checkpoint of it.

        Args:
            folder (str | Path): Of a bank of any number of processes.

        Returns:
            dict: For :meth:`restore`; without disagreement.

        Raises:
            BankError: If there is none, or of two runs.
        """
        found = manifests(Path(folder))
        if not found:
            raise BankError(f'{folder} holds no replay bank: there is no bank-r000.json in it.')
        return merge(found)

    def restore(self, index: Mapping, verify: bool = True) -> None:
        """Become the bank of an index; what was here is forgotten, not deleted.

        Args:
            index (Mapping): From :meth:`index`, :meth:`merge` or :meth:`latest_index`.
            verify (bool): Whether to compare every checksum now. Else each is compared when its
                images are first drawn, and now only that the files are there in full.

        Raises:
            BankError: If a segment is missing or damaged; the bank is as it was.
            ValueError: If the images have another size.
        """
        size, world, next_ids, entries = read_index(index)
        if size != self.image_size:
            raise ValueError(
                f'ReplayBank: the checkpoint holds images of {size} px, the run draws '
                f'{self.image_size}: resume with the image size of the checkpoint.'
            )
        kept = []
        for entry in entries:
            own = (entry.segment.ids % self.world == self.rank).any()
            if own and (world != self.world or self.rank in entry.held_by):
                kept.append(entry)
                if entry.content is None:
                    self._verify(entry.segment, checksum=verify)
        self._clear()
        for entry in kept:
            if entry.content is None:
                self._segments.append(entry.segment)
            else:
                self._store(entry.segment, entry.content)
        if world == self.world and self.rank in next_ids:
            self._next_id = next_ids[self.rank]
        else:
            last = max(next_ids.values(), default=0)
            self._next_id = last + (self.rank - last) % self.world
        self._settle()
        self._write_manifest()

    def _verify(self, segment: Segment, checksum: bool = True) -> None:
        if self.folder is None:
            raise BankError(
                f'The images of this replay bank lie in files such as {segment.name}: set folder '
                'to where they are.'
            )
        path = self.folder / segment.name
        if not path.is_file():
            raise BankError(_mend(f'{path} is missing'))
        held = path.stat().st_size
        if held != segment.nbytes:
            raise BankError(_mend(f'{path} is damaged: {held:,} bytes, not {segment.nbytes:,}'))
        if checksum:
            found = sha256(path)
            if found != segment.sha256:
                raise BankError(
                    _mend(f'{path} is damaged: its SHA-256 is {found}, not {segment.sha256}')
                )
            segment.verified = True

    # ---------------------------------------------------------------- files

    @property
    def _manifest(self) -> Path:
        return self.folder / f'bank-r{self.rank:03d}.json'

    def hold_manifest(self) -> None:
        """Leave the manifest of an earlier run as it is until :meth:`publish`."""
        self._held = self.folder is not None and self._manifest.is_file()

    def publish(self) -> None:
        """Write the manifest, and from now on at every change."""
        self._held = False
        self._write_manifest()

    def _write_manifest(self) -> None:
        """The index without what changes often, for people and :meth:`latest_index`."""
        if self._held or self.folder is None or not self.folder.is_dir():
            return
        try:
            write_json(self._manifest, self._index(values=False, content=False))
        except OSError as error:
            raise BankError(f'The bank could not write into {self.folder}: {error}.') from error

    def prune(self, keep: Iterable[Mapping] = (), names: Collection[str] = ()) -> list[str]:
        """Delete this process's files that are neither drawn from nor kept.

        Args:
            keep (Iterable[Mapping]): Indices of all checkpoints that should remain usable.
            names (Collection[str]): Names of further files to keep.

        Returns:
            list[str]: Names of the deleted files.
        """
        kept = {entry['name'] for index in keep for entry in index['segments']}
        deleted = self.unneeded(kept.union(names))
        for name in deleted:
            (self.folder / name).unlink()
        return deleted

    def unneeded(self, kept: Collection[str] = ()) -> list[str]:
        """Names of this process's files that no process draws from.

        Args:
            kept (Collection[str]): Names of files that are needed for something else.
        """
        if self.folder is None or not self.folder.is_dir():
            return []
        needed = {segment.name for segment in self._segments}.union(kept)
        # Another process may draw from a file of this one's rank, made when there were fewer.
        for index in manifests(self.folder):
            needed |= {entry['name'] for entry in index['segments']}
        found = []
        for path in sorted(self.folder.iterdir()):
            name = SEGMENT.match(path.name.removeprefix('.'))
            ours = name is not None and int(name[1]) % self.world == self.rank
            if ours and path.name not in needed:
                found.append(path.name)
        return found

    def delete(self) -> None:
        """Delete every file of the bank, of all processes, and forget all images."""
        self._clear()
        if self.folder is None or not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            name = path.name.removeprefix('.')
            if SEGMENT.match(name) or MANIFEST.match(name):
                path.unlink()


def _size(nbytes: int) -> str:
    return f'{nbytes / 2**30:.2f} GiB' if nbytes >= 1 << 27 else f'{nbytes / 2**20:.2f} MiB'


def _mend(what: str) -> str:
    return (
        f'Replay bank: {what}. Copy it again from where the run was made, or resume from a '
        'checkpoint that does not name it, or start the run anew.'
    )


def _values(values: np.ndarray | Tensor, count: int) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().float().cpu().numpy()
    values = np.array(values, np.float32)
    if values.shape != (count,) or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            f'ReplayBank: disagreement must be {count} finite values of at least 0, got shape '
            f'{values.shape}.'
        )
    return values
