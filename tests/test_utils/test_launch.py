"""What the tools share: how many threads they take."""

import pytest
import torch

from mmdfkd.utils.launch import use_all_cores


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
