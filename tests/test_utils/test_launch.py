"""What the tools share: how many threads they take."""

import argparse

import pytest
import torch

from mmdfkd.utils.launch import Options, core_count, read_config, use_all_cores


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


@pytest.mark.parametrize(
    'line', ['x = undefined', 'x = [][1]', 'x = dict()["none"]', 'x = 1 / 0', 'x = (1).none']
)
def test_a_config_that_fails_is_named(tmp_path, line):
    path = tmp_path / 'failing.py'
    path.write_text(line + '\n')
    with pytest.raises(ValueError, match=r'failing\.py, or one of its _base_ files: \w+Error: .+'):
        read_config(str(path))


def test_a_setting_without_a_value_is_named(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=Options)
    assert parser.parse_args(['--cfg-options', 'a.b=3']).cfg_options == {'a.b': 3}
    with pytest.raises(SystemExit):
        parser.parse_args(['--cfg-options', 'a.b=3', 'foo'])
    assert "'foo' is not KEY=VALUE" in capsys.readouterr().err
