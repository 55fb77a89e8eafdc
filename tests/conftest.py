"""Puts this folder on the path, for ``toy``, and fixes the number of threads."""

import os

# Before anything that starts threads is imported, and for the processes that tests start: tools
# that are called in a test's own process take every core unless this says otherwise, and workers
# with several spinning threads each stall one another (a test of 1 s took 40).
os.environ['OMP_NUM_THREADS'] = '1'
os.environ['OPENBLAS_NUM_THREADS'] = '1'

import pytest  # noqa: E402
import torch  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

import mmdfkd  # noqa: E402, F401  (first: it makes torchvision importable)


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    """Bits differ between thread counts."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_scope_left_behind():
    """A Runner leaves its default scope behind; the next test starts without."""
    yield
    DefaultScope._instance_dict.clear()
