"""What the tools share: how many threads they take."""

import pytest
import torch

from mmdfkd.utils.launch import core_count, use_all_cores


@pytest.mark.parametrize(('variable', 'expected'), [(None, 3), ('1', 1)])
def test_tools_take_every_core_unless_told(variable, expected, monkeypatch):
    monkeypatch.setattr('os.sched_getaffinity', lambda _: set(range(3)))
    if variable is None:
        monkeypatch.delenv('OMP_NUM_THREADS')
    else:
        monkeypatch.setenv('OMP_NUM_THREADS', variable)
    before = torch.get_num_threads()
    try:
        use_all_cores()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
    assert before == 1, 'the tests run on one thread'


def test_a_system_that_does_not_tell_a_process_its_cores(monkeypatch):
    monkeypatch.delattr('os.sched_getaffinity')
    monkeypatch.setattr('os.cpu_count', lambda: 5)
    assert core_count() == 5
    monkeypatch.setattr('os.cpu_count', lambda: None)
    assert core_count() == 1
