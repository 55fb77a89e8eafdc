"""Puts this folder on the path, for ``toy``, and fixes the number of threads."""

import pytest
import torch
from mmengine.registry import DefaultScope

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    """Bits differ between thread counts."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_scope_left_behind():
    """A Runner leaves its default scope behind; the next test starts without."""
    yield
    DefaultScope._instance_dict.clear()
