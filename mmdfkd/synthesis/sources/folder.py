import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_dist_info
from mmengine.logging import print_log
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.registry import MODELS, TASK_UTILS
from mmdfkd.utils.run_files import write_json

from ..folder_filter import Candidate, FolderFilter
from ..image_files import SUFFIXES, image_files, read_with_digest
from .base import SyntheticSource

#: The choice, in the run's folder.
CHOICE = 'folder_choice.json'
_FORMAT = 2
# Of the unreadable files, so many are named in the log; all are in the choice.
_NAMED = 5


@MODELS.register_module()
class FolderSource(SyntheticSource):
    """Images that somebody has, filtered by the teacher: made by others, crawled, or synthesised.

    Any folder with images, at any depth: an image folder with a folder for each class, or a COCO
    set. Labels and annotations are not read. Images are scaled to cover the run's size and cut to
    it. The teacher looks at all of them once, before the first step, and the choice is kept in the
    run's folder: a resumed run does not repeat it, and stops if it finds another, or if the content
    of a chosen file has changed. Files that cannot be read are named, skipped and counted.

    **Never data-free**: needs ``model.data_free=False``, and the report says so and counts every
    file opened.

    Args:
        root (str): The folder.
        filter (Mapping | None): Arguments of
            :class:`~mmdfkd.synthesis.folder_filter.FolderFilter`; by default all images but
            near-duplicates.
        balance (bool): Whether every class that the teacher sees gets the same share of the draws.
        augment (Mapping | None): Config of the augmentation of every draw; None turns it off.
        batch_size (int): Images that the teacher looks at at once.
        max_bytes (int): The chosen images lie in memory if they need no more; else each draw reads
            its files.

    Raises:
        ValueError: If an argument makes no sense.
    """

    reads_images = True

    def __init__(
        self,
        root: str,
        filter: Mapping | None = None,
        balance: bool = True,
        augment: Mapping | None = dict(type='mmdfkd.LightAugment', turn=0.0),
        batch_size: int = 32,
        max_bytes: int = 2 << 30,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f'FolderSource: batch_size must be at least 1, got {batch_size}.')
        self.root = Path(root)
        self.filter = FolderFilter(**(filter or {}))
        self.balance = balance
        self.augment = None if augment is None else TASK_UTILS.build(augment)
        self.batch_size = batch_size
        self.max_bytes = max_bytes
        #: The chosen images' paths below ``root`` and the class seen in each, best first.
        self.names: list[str] = []
        #: SHA-256 of each of these files.
        self.digests: list[str] = []
        self.labels = np.zeros(0, np.int64)
        self.pool: Tensor | None = None
        self._by_class: list[np.ndarray] = []
        # Of the names and of the contents: this run's and the checkpoint's.
        self._digest: dict[str, str] = {}
        self._restored: dict[str, str] = {}

    @property
    def self_contained(self) -> bool:
        """False: the teacher chooses the images."""
        return False

    # Choosing -----------------------------------------------------------------------------------

    def prepare(
        self,
        teacher: Adapter,
        *,
        seed: int,
        image_size: tuple[int, int],
        device: torch.device | str,
    ) -> None:
        """Choose the images, or find the choice that was made; progress is logged.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it holds no image, or none passes the filter.
        """
        super().prepare(teacher, seed=seed, image_size=image_size, device=device)
        files = image_files(self.root)
        if not files:
            raise ValueError(
                f'FolderSource: {self.root} holds no image ({", ".join(SUFFIXES)}), nor does any '
                'folder in it.'
            )
        key = self._key(teacher, files)
        # One process says whether there is a choice: all go the same way.
        found = [self._read_choice(key)]
        broadcast_object_list(found)
        pixels: dict[int, np.ndarray] = {}
        if found[0] is None:
            found[0], pixels = self._choose(teacher, files, key)
            self._write_choice(found[0])
        self._take(found[0], files, pixels)

    def _key(self, teacher: Adapter, files: list[str]) -> str:
        """A digest of all that the choice depends on, of the files their names and sizes.

        A resumed run does not read them all: contents are compared of those that were chosen.
        """
        digest = hashlib.sha256()
        settings = dict(self.filter.settings, size=self.image_size, format=_FORMAT)
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name in files:
            digest.update(f'{name}\0{_size(self.root / name)}\n'.encode())
        for name, value in teacher.net.state_dict().items():
            digest.update(name.encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy())
        return digest.hexdigest()

    def _read_choice(self, key: str) -> dict | None:
        """The choice in the run's folder, if it is one of these images by this teacher."""
        path = None if self.folder is None else self.folder / CHOICE
        if path is None or not path.is_file() or get_dist_info()[0] != 0:
            return None
        try:
            choice = json.loads(path.read_text(encoding='utf-8'))
            return choice if choice['key'] == key else None
        except (ValueError, KeyError, TypeError):
            print_log(f'Folder: {path} is damaged; choosing again', 'current')
            return None

    def _write_choice(self, choice: dict) -> None:
        if self.folder is not None and get_dist_info()[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / CHOICE, choice)

    def _choose(
        self, teacher: Adapter, files: list[str], key: str
    ) -> tuple[dict, dict[int, np.ndarray]]:
        """Let the teacher look at all images; each process at its part.

        Returns:
            tuple[dict, dict[int, np.ndarray]]: The choice, and the images by number as far as they
                were kept.

        Raises:
            ValueError: If no image passes; counts what each filter held back.
        """
        rank, world = get_dist_info()
        start = told = time.perf_counter()
        mine = list(range(len(files)))[rank::world]
        # Those of one process that fit are not read a second time.
        fits = world == 1 and len(files) * 3 * np.prod(self.image_size) <= self.max_bytes
        candidates: list[Candidate] = []
        unreadable: list[tuple[str, str]] = []
        pixels: dict[int, np.ndarray] = {}
        digests: dict[int, str] = {}
        for first in range(0, len(mine), self.batch_size):
            batch: dict[int, np.ndarray] = {}
            for number in mine[first : first + self.batch_size]:
                try:
                    path = self.root / files[number]
                    batch[number], digests[number] = read_with_digest(path, self.image_size)
                except ValueError as error:
                    unreadable.append((files[number], str(error)))
            if batch:
                stack = np.stack(list(batch.values()))
                candidates += self.filter.look(stack, list(batch), teacher, self.device)
            if fits:
                pixels |= batch
            now = time.perf_counter()
            if now - told > 10:
                done = first + self.batch_size
                left = (now - start) / done * (len(mine) - done)
                print_log(f'Folder: {done} of {len(mine)} images, {left:.0f} s to go', 'current')
                told = now
        parts = all_gather_object((candidates, unreadable, digests))
        candidates = sorted((c for part, _, _ in parts for c in part), key=lambda c: c.number)
        unreadable = sorted(bad for _, part, _ in parts for bad in part)
        digests = {number: digest for *_, part in parts for number, digest in part.items()}
        chosen, counts = self.filter.choose(candidates)
        counts = dict(files=len(files), unreadable=len(unreadable), **counts, chosen=len(chosen))
        self._tell(counts, unreadable)
        if not chosen:
            surest = max((c.confidence for c in candidates), default=0.0)
            raise ValueError(
                f'FolderSource: no image of {self.root} passes the filter: of {counts["files"]} '
                f'files {counts["unreadable"]} are unreadable, in {counts["unsure"]} the teacher '
                f'is less sure than min_confidence={self.filter.min_confidence:g} (at most '
                f'{surest:.3f}), {counts["duplicates"]} are near-duplicates. Lower min_confidence, '
                'or take images that are more like what the teacher knows.'
            )
        rows = [[files[c.number], c.label, round(c.score, 6), digests[c.number]] for c in chosen]
        return dict(key=key, counts=counts, unreadable=unreadable, chosen=rows), pixels

    def _tell(self, counts: dict[str, int], unreadable: list[tuple[str, str]]) -> None:
        """Say what was found, and name what could not be read."""
        if unreadable:
            named = '; '.join(f'{name} ({reason})' for name, reason in unreadable[:_NAMED])
            more = f'; and {len(unreadable) - _NAMED} more' if len(unreadable) > _NAMED else ''
            print_log(
                f'Folder: {len(unreadable)} of {counts["files"]} files cannot be read and are '
                f'skipped: {named}{more}',
                'current',
            )
        print_log(
            f'Folder: {counts["chosen"]} of {counts["files"]} images of {self.root} chosen; '
            f'{counts["unreadable"]} unreadable, {counts["unsure"]} unsure, '
            f'{counts["duplicates"]} near-duplicates, {counts["beyond_keep"]} beyond keep',
            'current',
        )

    def _take(self, choice: dict, files: list[str], pixels: dict[int, np.ndarray]) -> None:
        """Make a choice this source's own, and bring its images into memory if they fit."""
        self.names = [name for name, *_ in choice['chosen']]
        self.labels = np.array([label for _, label, *_ in choice['chosen']], np.int64)
        self.digests = [digest for *_, digest in choice['chosen']]
        self._by_class = [np.flatnonzero(self.labels == c) for c in np.unique(self.labels)]
        self._digest = {
            name: hashlib.sha256('\n'.join(lines).encode()).hexdigest()
            for name, lines in dict(choice=self.names, contents=self.digests).items()
        }
        self._compare()
        self.pool = None
        if len(self.names) * 3 * np.prod(self.image_size) <= self.max_bytes:
            numbers = {name: number for number, name in enumerate(files)}
            self.pool = torch.empty((len(self.names), 3, *self.image_size), dtype=torch.uint8)
            for place, name in enumerate(self.names):
                image = pixels.get(numbers[name])
                self.pool[place] = self._read(place) if image is None else _planes(image)

    def _read(self, place: int) -> Tensor:
        path = self.root / self.names[place]
        try:
            image, digest = read_with_digest(path, self.image_size)
        except ValueError as error:
            raise ValueError(
                f'FolderSource: {path} was chosen and can no longer be read ({error}): put it '
                'back, or start the run anew.'
            ) from error
        if digest != self.digests[place]:
            raise ValueError(
                f'FolderSource: {path} is not the file that was chosen, its content has changed '
                'since: put that back, or start the run anew.'
            )
        return _planes(image)

    # Checkpoint ---------------------------------------------------------------------------------

    def get_extra_state(self) -> dict:
        """Which choice the run was trained on, and the contents of its files."""
        return dict(choice=None, contents=None) | self._digest

    def set_extra_state(self, state: dict) -> None:
        """Compare it with the present one."""
        # Runs that are older than the contents have the choice alone.
        self._restored = {name: value for name, value in state.items() if value is not None}
        self._compare()

    def _compare(self) -> None:
        """Once there are both.

        Raises:
            ValueError: If they differ.
        """
        if any(self._digest.get(name, value) != value for name, value in self._restored.items()):
            raise ValueError(
                f'FolderSource: the images chosen from {self.root} are not those of the '
                'checkpoint: files, filter, teacher or image size have changed since. Restore '
                'them, or start the run anew.'
            )

    # Draws --------------------------------------------------------------------------------------

    def pick(self, g: int) -> int:
        """Which of the chosen images sample ``g`` is."""
        which, place = self.rng('folder', g).random(2)
        if not self.balance:
            return int(place * len(self.names))
        own = self._by_class[int(which * len(self._by_class))]
        return int(own[int(place * len(own))])

    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """Chosen images, augmented; they are meant to show nothing in particular."""
        return self._images([self.pick(item['g']) for item in items], items), Targets()

    def draw_for(self, items: list[dict], labels: np.ndarray) -> Tensor:
        """Images in which the teacher sees the wanted classes, any where there is none."""
        chosen = []
        for item, label in zip(items, labels, strict=True):
            own = np.flatnonzero(self.labels == label)
            place = self.rng('folder-class', item['g']).random()
            chosen.append(int(own[int(place * len(own))]) if len(own) else self.pick(item['g']))
        return self._images(chosen, items)

    def _images(self, chosen: list[int], items: list[dict]) -> Tensor:
        if not self.names:
            raise RuntimeError('FolderSource: prepare() must run before images are drawn.')
        if self.pool is not None:
            images = self.pool[chosen]
        else:
            images = torch.stack([self._read(place) for place in chosen])
        images = images.to(self.device).float() / 255
        if self.augment is None:
            return images
        return self.augment(images, self.seed, [item['g'] for item in items])


def _planes(image: np.ndarray) -> Tensor:
    """``[3, H, W]`` of ``[H, W, 3]``."""
    return torch.from_numpy(image).permute(2, 0, 1)


def _size(path: Path) -> int:
    """Bytes of a file, -1 where there is none behind the name."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
