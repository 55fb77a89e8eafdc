"""The rendering benchmark: a line a row, which is not measured twice."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmdfkd.evaluation.results import read_results
from mmdfkd.registry import TASK_UTILS

PATH = Path(__file__).resolve().parents[2] / 'tools' / 'benchmarks' / 'rendering.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('rendering_benchmark', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = cv2.getNumThreads()
    yield module
    cv2.setNumThreads(threads)


def test_every_renderer_has_a_row(tool):
    types = {cfg['type'].removeprefix('mmdfkd.') for cfg in tool.ROWS.values()}
    own = {
        name
        for name, cls in TASK_UTILS.module_dict.items()
        if name.endswith('Renderer') and cls.__module__.startswith('mmdfkd.')
    }
    assert types == own


def test_counts_images_of_cpu_time(tool):
    calls = []

    class Counting:
        def __call__(self, seed, g, size):
            calls.append((seed, g, size))
            return np.zeros((3, *size), np.uint8)

    TASK_UTILS.register_module(module=Counting, name='CountingForTests')
    try:
        count, seconds = tool.measure(dict(type='CountingForTests'), 8, 0.01, seed=4)
    finally:
        TASK_UTILS.module_dict.pop('CountingForTests')
    assert seconds >= 0.01 and len(calls) == count + tool.WARM_UP
    assert calls == [(4, g, (8, 8)) for g in range(len(calls))]


def test_writes_lines_and_goes_on(tool, tmp_path, capsys):
    path = tmp_path / 'rendering.jsonl'
    command = ['--rows', 'noise', 'sinusoids', '--seconds', '0.01', '--results', str(path)]
    tool.main([*command, '--sizes', '8'])
    lines = read_results(path)
    assert [(r['set'], r['row']) for r in lines] == [('8 px', 'noise'), ('8 px', 'sinusoids')]
    for line in lines:
        assert line['metrics']['images_per_s'] == pytest.approx(
            line['steps'] / line['seconds'], rel=0.6
        )
    tool.main([*command, '--sizes', '8', '12'])
    assert 'there already' in capsys.readouterr().out
    assert [r['set'] for r in read_results(path)] == ['8 px', '8 px', '12 px', '12 px']
    with pytest.raises(SystemExit):
        tool.parse_args(['--seconds', '0'])
