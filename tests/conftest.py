"""Puts this folder on the path, for ``toy``, and fixes the number of threads."""

import pytest
import torch


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    """Bits differ between thread counts."""
    torch.set_num_threads(1)
