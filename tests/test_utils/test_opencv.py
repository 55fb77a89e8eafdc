import multiprocessing

import cv2
import numpy as np

import mmdfkd  # noqa: F401
from mmdfkd.utils.opencv import single_threaded_opencv


def _blur(_) -> int:
    cv2.GaussianBlur(np.zeros((512, 512, 3), np.uint8), (9, 9), 0)
    return cv2.getNumThreads()


def test_forked_workers_of_a_threaded_parent_neither_hang_nor_thread():
    cv2.setNumThreads(3)
    _blur(0)
    with single_threaded_opencv(), multiprocessing.get_context('fork').Pool(1) as pool:
        assert pool.map_async(_blur, range(2)).get(timeout=30) == [1, 1]
    assert cv2.getNumThreads() == 3
