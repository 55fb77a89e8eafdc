"""OpenCV's own threads beside worker processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2


@contextmanager
def single_threaded_opencv() -> Iterator[None]:
    """Stop OpenCV's threads while the context is open; processes forked in it have none either.

    Where worker processes are the parallelism, its threads only fight over the cores. They have to
    be stopped before the fork: a forked child that stops threads it did not inherit waits for ever.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
