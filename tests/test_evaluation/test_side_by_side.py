"""Runs side by side: what waits for what, and what happens when one fails."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from mmdfkd.evaluation.benchmark import run_command
from mmdfkd.evaluation.side_by_side import SideBySide, add_jobs_option

# Says when it began and ended, and on how many threads; 'bad' fails, 'mute' leaves no line. A tool
# is told to make one run at a time: by default it would start processes of its own.
TOOL = """
import os, sys, time
run, out = sys.argv[-1], sys.argv[1]
if sys.argv[2:4] != ['--jobs', '1']:
    sys.exit('would start further processes')
if run == 'bad':
    sys.exit('broken')
begin = time.time()
time.sleep(0.5)
if run != 'mute':
    with open(out, 'a') as stream:
        threads = os.environ['OMP_NUM_THREADS']
        stream.write(f'{run} {begin} {time.time()} {threads}\\n')
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    tool, out = tmp_path / 'tool.py', tmp_path / 'out.txt'
    tool.write_text(TOOL)
    out.write_text('')

    def make(runs, needs=None, jobs=2):
        told = []
        one = SideBySide(
            tool=tool,
            common=[str(out)],
            left=lambda: [r for r in runs if r not in _lines(out)],
            part=lambda run: ('--row', run),
            needs=lambda run: (needs or {}).get(run, ()),
            done=told.append,
            jobs=jobs,
            logs=tmp_path,
            every=0.05,
        )
        return one, told, out

    return make


def _lines(out: Path) -> dict[str, list[float]]:
    rows = (line.split() for line in out.read_text().splitlines())
    return {name: [float(v) for v in values] for name, *values in rows}


def test_two_at_a_time_and_the_ceiling_first(driver):
    one, told, out = driver(['first', 'a', 'b', 'c'], dict.fromkeys('abc', ['first']))
    one.run()
    lines = _lines(out)
    assert sorted(told) == ['a', 'b', 'c', 'first'] and told[0] == 'first'
    # Nothing began before what it needs had ended.
    assert min(lines[name][0] for name in 'abc') > lines['first'][1]
    # Two overlap, a third does not.
    assert lines['b'][0] < lines['a'][1] and lines['c'][0] > min(lines['a'][1], lines['b'][1])
    spans = [span[:2] for span in lines.values()]
    assert max(sum(b <= begin < e for b, e in spans) for begin, _ in spans) == 2


def test_cores_are_shared_out(driver, monkeypatch):
    monkeypatch.setattr('os.sched_getaffinity', lambda _: set(range(8)))
    one, _, out = driver(['a', 'b'])
    one.run()
    assert [line[2] for line in _lines(out).values()] == [4, 4]


def test_runs_made_together_are_one_process(driver):
    one, _, out = driver(['a', 'b'])
    one.part = lambda run: ('--row', 'b')
    # The tool writes b alone: a process that leaves its run undone is a fault.
    with pytest.raises(RuntimeError, match='a: its process left no line'):
        one.run()
    assert list(_lines(out)) == ['b']


@pytest.mark.parametrize(('name', 'says'), [('bad', 'failed'), ('mute', 'left no line')])
def test_a_failure_is_named_and_the_others_end(driver, name, says):
    one, told, out = driver([name, 'a', 'b', 'c'])
    with pytest.raises(RuntimeError, match=f'{name}: its process {says}.*job_row_{name}.log'):
        one.run()
    # What ran beside it is whole; nothing was started any more.
    assert 'a' in _lines(out) and told == list(_lines(out)) and 'c' not in told


def test_a_circle_is_refused(driver):
    one, _, _ = driver(['a', 'b'], dict(a=['b'], b=['a']))
    with pytest.raises(RuntimeError, match='a needs a run that needs it'):
        one.run()


def test_an_interrupt_ends_the_processes(driver, tmp_path):
    one, _, out = driver(['a'])
    one.tool.write_text('import time\ntime.sleep(60)\n')

    def interrupt():
        if one._running:
            raise KeyboardInterrupt
        return ['a']

    one.left = interrupt
    begin = time.time()
    with pytest.raises(KeyboardInterrupt):
        one.run()
    ((_, process, _),) = one._running.values()
    assert process.wait(10) == -15 and time.time() - begin < 20
    assert sys.executable in process.args[0]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_killed_benchmark_ends_its_processes(driver, number):
    one, _, _ = driver(['a'])
    one.tool.write_text('import time\ntime.sleep(20)\n')

    def killed():
        if one._running:
            os.kill(os.getpid(), number)
        return ['a']

    one.left = killed
    # As it is by default; whoever runs the tests may ignore it (nohup).
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            one.run()
    finally:
        signal.signal(number, before)
    ((_, process, _),) = one._running.values()
    assert ended.value.code == 128 + number and process.wait(10) == -15


def test_a_killed_benchmark_ends_its_run(tmp_path):
    """Of the process that makes one run: its tool ends, too."""
    (tmp_path / 'tool.py').write_text(
        'import os, time\nprint(os.getpid(), flush=True)\n'
        'os.kill(os.getppid(), 15)\ntime.sleep(60)\n'
    )
    with pytest.raises(SystemExit):
        run_command(['tool.py'], tmp_path, tmp_path / 'log', 'run')
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'log').read_text()), 0)


@pytest.mark.parametrize(('cores', 'gpu', 'jobs'), [(2, False, 2), (16, False, 4), (16, True, 1)])
def test_one_job_a_core_unless_told(cores, gpu, jobs, monkeypatch):
    monkeypatch.setattr('os.sched_getaffinity', lambda _: set(range(cores)))
    monkeypatch.setattr('torch.cuda.is_available', lambda: gpu)
    parser = argparse.ArgumentParser()
    add_jobs_option(parser)
    assert parser.parse_args([]).jobs == jobs
    assert parser.parse_args(['--jobs', '3']).jobs == 3


@pytest.mark.parametrize('jobs', ['0', '-1', 'two'])
def test_no_such_number_of_jobs(jobs, capsys):
    parser = argparse.ArgumentParser()
    add_jobs_option(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--jobs', jobs])
    assert 'at least 1' in capsys.readouterr().err
