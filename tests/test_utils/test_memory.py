"""What memory the machine has left."""

import sys

import pytest

from mmdfkd.utils import memory
from mmdfkd.utils.memory import available_memory, check_memory


def test_it_is_read_from_the_system(tmp_path):
    told = tmp_path / 'meminfo'
    told.write_text('MemTotal:        4000 kB\nMemFree:  10 kB\nMemAvailable:    1500 kB\n')
    assert available_memory(told) == 1500 * 1024
    # Other systems say nothing, and old kernels nothing of this.
    assert available_memory(tmp_path / 'none') is None
    told.write_text('MemTotal: 4000 kB\n')
    assert available_memory(told) is None
    if sys.platform == 'linux':
        assert 1 << 20 < available_memory() < 1 << 50


def test_too_much_is_refused_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(memory, 'available_memory', lambda: 3 << 30)
    check_memory(3 << 30, 'These', 'take fewer')
    with pytest.raises(ValueError, match=r'These need 4.0 GiB, and of memory 3.0 GiB are left: ta'):
        check_memory(4 << 30, 'These', 'take fewer')
    monkeypatch.setattr(memory, 'available_memory', lambda: None)
    check_memory(1 << 60, 'These', 'take fewer')
