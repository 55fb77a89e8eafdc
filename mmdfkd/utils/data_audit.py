"""Counts the images of any dataset that a run opens: data-free, proven."""

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    {'.bmp', '.gif', '.jpeg', '.jpg', '.mdb', '.npy', '.npz', '.parquet'}
    | {'.pgm', '.png', '.ppm', '.tfrecord', '.tif', '.tiff', '.webp'}
)
# scikit-learn's handwritten digits, and the event that the digits loader raises.
_DIGITS_FILE = 'digits.csv.gz'
_DIGITS_EVENT = 'mmdfkd.load_digits'


class DataAudit:
    """Counts image files opened for reading, in this process and in the workers forked from it.

    Listens to the interpreter's ``open`` event (mmcv, PIL, numpy and file clients all come there),
    and to OpenCV's own file readers, which do not. Installed once and for the life of the process,
    as audit hooks are; it counts while it is not paused. Annotation files are noted by name in this
    process, where datasets load them.

    A worker keeps the pause that it was forked under: one of the validation's loader never counts,
    one of the training's always does, also what it fetches ahead while validation goes on.
    """

    _instance: 'DataAudit | None' = None

    def __init__(self) -> None:
        # The count is shared with forked workers; whether it is paused is each process's own.
        self._images = multiprocessing.Value('q', 0)
        self._paused = False
        self._pid = os.getpid()
        self.annotations: list[str] = []

    @classmethod
    def install(cls) -> 'DataAudit':
        """Start listening, from zero."""
        audit = cls.install_once()
        audit.images_read = 0
        audit.annotations.clear()
        audit.pause(False)
        return audit

    @classmethod
    def install_once(cls) -> 'DataAudit':
        """The process's audit; the count goes on where it stands."""
        if cls._instance is None:
            cls._instance = cls()
            sys.addaudithook(cls._instance._on_event)
            cls._instance._watch_opencv()
        return cls._instance

    @property
    def images_read(self) -> int:
        """Images opened so far."""
        return self._images.value

    @images_read.setter
    def images_read(self, value: int) -> None:
        with self._images.get_lock():
            self._images.value = value

    def pause(self, paused: bool = True) -> None:
        """Do not count while the run is validating."""
        self._paused = paused

    def _count(self) -> None:
        if not self._paused:
            with self._images.get_lock():
                self._images.value += 1

    def _on_event(self, event: str, args: tuple) -> None:
        if event == _DIGITS_EVENT:
            self._count()
        if event != 'open':
            return
        path, mode, flags = args
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if isinstance(mode, str) and set(mode) & set('wax+'):
            return
        if mode is None and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            return
        name = os.fsdecode(path)
        suffix = os.path.splitext(name)[1].lower()
        is_image = suffix in IMAGE_SUFFIXES and not _is_library(name)
        if is_image or os.path.basename(name) == _DIGITS_FILE:
            self._count()
        elif suffix == '.json' and 'annotation' in name and os.getpid() == self._pid:
            self.annotations.append(name)

    def _watch_opencv(self) -> None:
        import cv2

        for name in ('imread', 'imreadmulti'):
            setattr(cv2, name, self._counting(getattr(cv2, name)))

    def _counting(self, read: Callable) -> Callable:
        @functools.wraps(read)
        def counted(filename, *args, **kwargs):
            if not _is_library(str(filename)):
                self._count()
            return read(filename, *args, **kwargs)

        return counted


def _is_library(name: str) -> bool:
    """Whether a file is an installed package's own (icons of a plotting library), not a dataset's.

    Packages bring datasets too, in folders that say so.
    """
    parts = Path(name).parts
    for packages in ('site-packages', 'dist-packages'):
        if packages in parts:
            inside = parts[parts.index(packages) + 1 :]
            return not {'data', 'datasets'} & set(inside)
    return False
