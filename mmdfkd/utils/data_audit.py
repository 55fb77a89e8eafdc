"""Counts the images of any dataset that a run opens: data-free, proven."""

import multiprocessing
import os
import sys
from pathlib import Path

IMAGE_SUFFIXES = frozenset('.bmp .gif .jpeg .jpg .npy .npz .pgm .png .ppm .tif .tiff .webp .tfrecord .mdb .parquet'.split())
# scikit-learn's handwritten digits, and the event that the digits loader raises.
_DIGITS_FILE = 'digits.csv.gz'
_DIGITS_EVENT = 'mmdfkd.load_digits'


class DataAudit:
    """Counts image files opened for reading, in this process and in the workers forked from it.

    Listens to the interpreter's ``open`` event (mmcv, PIL, numpy and file clients all come there), and to OpenCV's own file
    reader, which does not. Installed once and for the life of the process, as audit hooks are; it counts
    while it is not paused. Annotation files are noted by name in this process, where datasets
    load them.
    """

    _instance: 'DataAudit | None' = None

    def __init__(self) -> None:
        # Shared with forked workers: the count, and whether validation is going on.
        self._images = multiprocessing.Value('q', 0)
        self._paused = multiprocessing.Value('b', 0)
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
        self._paused.value = int(paused)

    def _count(self) -> None:
        if not self._paused.value:
            with self._images.get_lock():
                self._images.value += 1

    def _on_event(self, event: str, args: tuple) -> None:
        if event == _DIGITS_EVENT:
            self._count()
        if event != 'open':
            return
        path, mode, flags = args
        if not isinstance(path, (str, bytes)) or (isinstance(mode, str) and set(mode) & set('wax+')):
            return
        if mode is None and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            return
        name = os.fsdecode(path)
        suffix = os.path.splitext(name)[1].lower()
        if os.path.basename(name) == _DIGITS_FILE:
            self._count()
        elif suffix in IMAGE_SUFFIXES and not _is_library(name):
            self._count()
        elif suffix == '.json' and 'annotation' in name and os.getpid() == self._pid:
            self.annotations.append(name)

    def _watch_opencv(self) -> None:
        import cv2

        read = cv2.imread

        def imread(filename, *args, **kwargs):
            self._count()
            return read(filename, *args, **kwargs)

        cv2.imread = imread


def _is_library(name: str) -> bool:
    """Whether a file belongs to an installed package (icons of a plotting library), not to a dataset."""
    return 'site-packages' in Path(name).parts
