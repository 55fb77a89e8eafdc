import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """The script as a module, with a copy of the requirement files that a test may change."""
    spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools' / 'setup_env.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    monkeypatch.setattr(module, 'REQUIREMENTS', tmp_path / 'requirements')
    return module


def make_complete(environment) -> None:
    environment.python.parent.mkdir(parents=True)
    environment.python.touch()
    environment.stamp.touch()


@pytest.mark.parametrize('name', ['build', 'torch', 'cuda', 'lock', 'mmcv', 'overlay', 'peers'])
def test_a_changed_lock_is_noticed(tool, tmp_path, name):
    environment = tool.Environment(tmp_path / 'env')
    make_complete(environment)
    assert environment.stands
    path = tool.REQUIREMENTS / f'{name}.txt'
    path.write_text(path.read_text() + 'another==1.0\n')
    assert not environment.stands


def test_a_moved_environment_does_not_stand(tool, tmp_path):
    make_complete(tool.Environment(tmp_path / 'env'))
    (tmp_path / 'env').rename(tmp_path / 'other')
    assert not tool.Environment(tmp_path / 'other').stands


def test_every_requirement_file_is_in_the_hash(tool):
    assert sorted(tool.FILES) == sorted(path.name for path in tool.REQUIREMENTS.iterdir())


def test_a_standing_environment_is_left_alone(tool, tmp_path, capsys):
    environment = tool.Environment(tmp_path / 'env')
    make_complete(environment)
    tool.set_up(environment.path)
    assert capsys.readouterr().out == '' and not environment.log_path.exists()


def test_a_failure_names_the_log_and_leaves_no_stamp(tool, tmp_path, monkeypatch):
    failing = [sys.executable, '-c', 'print("the cause"); raise SystemExit(3)']
    monkeypatch.setattr(
        tool.Environment, 'build', lambda self: self.run('compiling', '1 s', failing)
    )
    environment = tool.Environment(tmp_path / 'env')
    with pytest.raises(tool.SetupError) as caught:
        tool.set_up(environment.path)
    message = str(caught.value)
    assert 'the cause' in message and '"compiling" failed with exit code 3' in message
    assert str(environment.log_path) in message
    assert not environment.stands
    # The lock is free again: a second try gets as far as the first.
    with pytest.raises(tool.SetupError, match='the cause'):
        tool.set_up(environment.path)


def test_progress_is_shown(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'REPORT_EVERY', 0.5)
    environment = tool.Environment(tmp_path / 'env')
    code = 'import time; print("[31/78] c++ -c x", flush=True); time.sleep(2.5)'
    environment.run('compiling', '7 min', [sys.executable, '-c', code])
    out = capsys.readouterr().out
    assert 'compiling (usually 7 min)' in out and 'file 31 of 78' in out


def test_two_set_ups_do_not_clash(tool, tmp_path, capsys):
    environment = tool.Environment(tmp_path / 'env')
    first = tool._locked(environment)
    code = f"""
import fcntl
handle = open({str(environment.lock_path)!r}, 'w')
try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print('busy')
"""
    command = [sys.executable, '-c', code]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == 'busy'
    first.close()
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == ''


def test_a_python_outside_the_lock_is_refused(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'OLDEST', (9, 0))
    with pytest.raises(tool.SetupError, match='PYTHON=python3'):
        tool.set_up(tmp_path / 'env')


@pytest.mark.parametrize(
    'answer, nvcc, wanted',
    [
        ('None False', '13.0', False),
        ('13.0 False', '13.0', False),
        ('13.0 True', '13.0', True),
        ('13.0 True', '12.4', False),
        ('13.0 True', None, False),
    ],
    ids=['CPU torch', 'no GPU', 'all there', 'another CUDA', 'no nvcc'],
)
def test_cuda_operators_where_all_is_there(tool, tmp_path, monkeypatch, answer, nvcc, wanted):
    monkeypatch.delenv('FORCE_CUDA', raising=False)
    monkeypatch.setenv('CUDA_HOME', str(tmp_path / 'cuda'))
    if nvcc is not None:
        compiler = tmp_path / 'cuda' / 'bin' / 'nvcc'
        compiler.parent.mkdir(parents=True)
        compiler.write_text(
            f'#!/bin/sh\necho "Cuda compilation tools, release {nvcc}, V{nvcc}.0"\n'
        )
        compiler.chmod(0o755)
    environment = tool.Environment(tmp_path / 'env')
    monkeypatch.setattr(environment, 'ask', lambda code: answer)
    assert environment.wants_cuda()[0] is wanted
    monkeypatch.setenv('FORCE_CUDA', str(int(not wanted)))
    assert environment.wants_cuda()[0] is not wanted


def test_an_interruption_ends_the_whole_step(tool, tmp_path):
    """What a step has started in turn, as pip starts compilers, does not go on without it."""
    beat = tmp_path / 'beat'
    worker = f'import time\nwhile True: open({str(beat)!r}, "a").write("."); time.sleep(0.05)'
    step = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {worker!r}])'
    code = f"""
import importlib.util, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location('setup_env', {tool.__file__!r})
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
step = [sys.executable, '-c', {step!r}]
tool.Environment.build = lambda self: self.run('compiling', '1 s', step)
sys.argv = ['setup_env.py', '--venv', {str(tmp_path / 'env')!r}]
sys.exit(tool.main())
"""
    process = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True)
    while not beat.exists() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    assert 'interrupted' in process.communicate(timeout=30)[1]
    assert process.returncode == 130
    time.sleep(0.3)
    before = beat.stat().st_size
    time.sleep(0.5)
    assert beat.stat().st_size == before
