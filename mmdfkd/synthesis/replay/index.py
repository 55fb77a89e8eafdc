"""What a checkpoint keeps of the replay bank: the names and checksums of its segments."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .segments import Arrays, BankError

FORMAT = 1
SEGMENT = re.compile(r'segment-r(\d{3,})-\d{8,}-[0-9a-f]{12}\.safetensors')
#: No append is larger; an index that says so is not followed.
_MOST_IMAGES = 10**7
MANIFEST = re.compile(r'bank-r\d{3,}\.json')


@dataclass(eq=False)
class Segment:
    """The images of one append.

    Attributes:
        first: Id of the first image.
        step: From one image's id to the next: the number of processes when it was made.
        count: Number of images.
        iteration: When they were made.
        disagreement: ``float32 [count]``, NaN where unknown; the only part that changes.
        nbytes: Size of the file, or of the arrays.
        name: The file, if there is one.
        sha256: Its checksum.
        verified: Whether the checksum was compared.
        arrays: The content, if it is in memory.
        meta: Texts that belong to it.
        shown: Pairs of row and class, once asked for.
    """

    first: int
    step: int
    count: int
    iteration: int
    disagreement: np.ndarray
    nbytes: int
    name: str | None = None
    sha256: str | None = None
    verified: bool = False
    arrays: Arrays | None = None
    meta: dict[str, str] = field(default_factory=dict)
    shown: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def ids(self) -> np.ndarray:
        """Ids of the images, ``int64 [count]``."""
        return self.first + self.step * np.arange(self.count)

    def entry(self, rank: int, values: bool, content: bool) -> dict:
        """The segment's line in the index.

        Args:
            rank (int): The process that draws from it.
            values (bool): With disagreement.
            content (bool): With the arrays, as tensors.

        Returns:
            dict: Plain numbers, texts and lists, and the tensors.
        """
        known = ~np.isnan(self.disagreement)
        entry = dict(
            name=self.name,
            sha256=self.sha256,
            bytes=self.nbytes,
            first=self.first,
            step=self.step,
            count=self.count,
            iteration=self.iteration,
            held_by=[rank],
            disagreement=None,
        )
        if values and known.any():
            pairs = zip(self.disagreement.tolist(), known, strict=True)
            entry['disagreement'] = [value if there else None for value, there in pairs]
        if content:
            entry['meta'] = dict(self.meta)
            entry['content'] = {key: torch.from_numpy(a) for key, a in self.arrays.items()}
        return entry


@dataclass
class Entry:
    """A segment as an index describes it, who draws from it, and its content if that is there."""

    segment: Segment
    held_by: list[int]
    content: Arrays | None


def read_index(index: Mapping) -> tuple[tuple[int, int], int, dict[int, int], list[Entry]]:
    """Check an index.

    Args:
        index (Mapping): Of any origin.

    Returns:
        tuple: Image size, number of processes, next id of each process, and the segments.

    Raises:
        BankError: If it is none.
    """
    try:
        if index['format'] != FORMAT:
            raise BankError(
                f'The index of the replay bank has format {index["format"]}, this version reads '
                f'{FORMAT}: use the version that wrote it.'
            )
        height, width = (int(part) for part in index['image_size'])
        next_ids = {int(key): int(value) for key, value in index['next_ids'].items()}
        entries = [_read_entry(entry) for entry in index['segments']]
        return (height, width), int(index['world']), next_ids, entries
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BankError(f'This is no index of a replay bank: {error!r}.') from error


def _read_entry(entry: Mapping) -> Entry:
    count, step = int(entry['count']), int(entry['step'])
    if not 1 <= count <= _MOST_IMAGES or step < 1:
        raise ValueError(f'a segment has {count} images, {step} ids apart')
    values = entry['disagreement'] or [None] * count
    if len(values) != count:
        raise ValueError('a segment has not a value for each image')
    segment = Segment(
        first=int(entry['first']),
        step=step,
        count=count,
        iteration=int(entry['iteration']),
        disagreement=np.array([np.nan if v is None else v for v in values], np.float32),
        nbytes=int(entry['bytes']),
        name=entry['name'],
        sha256=entry['sha256'],
        meta={str(key): str(value) for key, value in entry.get('meta', {}).items()},
    )
    content = entry.get('content')
    if content is not None:
        content = {key: value.cpu().numpy() for key, value in content.items()}
    # The name comes from a file and must not lead out of the folder.
    elif not SEGMENT.fullmatch(str(segment.name)) or len(str(segment.sha256)) != 64:
        raise ValueError(f'a segment is named {segment.name!r}')
    return Entry(segment, [int(rank) for rank in entry['held_by']], content)


def merge(indices: Iterable[Mapping]) -> dict:
    """One index of those of all processes.

    Args:
        indices (Iterable[Mapping]): One of each process.

    Returns:
        dict: For every process, of the same or another number of them.

    Raises:
        BankError: If they are not of one bank.
    """
    indices = list(indices)
    kinds = {(index['world'], tuple(index['image_size'])) for index in indices}
    if len(kinds) != 1:
        raise BankError(
            'These are indices of different replay banks: their image sizes or numbers of '
            'processes differ. Use one folder for one run.'
        )
    world = indices[0]['world']
    merged: dict[tuple, dict] = {}
    next_ids: dict[str, int] = {}
    for index in indices:
        next_ids |= index['next_ids']
        for entry in index['segments']:
            key = (entry['first'], entry['step'], entry['sha256'])
            whole = merged.setdefault(
                key, {**entry, 'held_by': [], 'disagreement': [None] * entry['count']}
            )
            whole['held_by'] = sorted({*whole['held_by'], *entry['held_by']})
            for i, value in enumerate(entry['disagreement'] or []):
                # Only the owner's value is up to date.
                if (entry['first'] + entry['step'] * i) % world in entry['held_by']:
                    whole['disagreement'][i] = value
    segments = sorted(merged.values(), key=lambda entry: entry['first'])
    ids = [e['first'] + e['step'] * np.arange(e['count']) for e in segments]
    if len(np.unique(np.concatenate([[], *ids]))) != sum(map(len, ids)):
        raise BankError(
            'These are indices of different replay banks: two segments have the same ids. Use one '
            'folder for one run.'
        )
    return {**indices[0], 'next_ids': next_ids, 'segments': segments}


def manifests(folder: Path) -> list[dict]:
    """What the processes last wrote of their part of a folder.

    Args:
        folder (Path): Of a bank.

    Returns:
        list[dict]: Indices; empty if there is no bank.

    Raises:
        BankError: If one is damaged.
    """
    found = []
    for path in sorted(folder.glob('bank-r*.json')):
        try:
            found.append(json.loads(path.read_text()))
            read_index(found[-1])
        except (ValueError, BankError) as error:
            raise BankError(
                f'{path}, the list of a replay bank, is damaged: {error}. Resume from a '
                'checkpoint, or delete the folder and start anew.'
            ) from error
    return found
