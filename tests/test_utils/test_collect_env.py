import os
import subprocess
import sys
from pathlib import Path

import mmdfkd
from mmdfkd.utils import collect_env as module
from mmdfkd.utils.compatibility import installed_toolboxes

ROOT = Path(__file__).resolve().parents[2]


def test_command_prints_what_a_bug_report_needs(tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'mmdfkd.utils.collect_env'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode == 0, result.stderr
    fields = dict(line.split(': ', 1) for line in result.stdout.splitlines() if ': ' in line)
    assert fields['mmdfkd'] == mmdfkd.__version__
    for name, version in installed_toolboxes().items():
        assert fields[name] == version
    assert fields['mmcv operators'].startswith('compiler ')
    assert 'OMP_NUM_THREADS=1' in fields['threads'] and 'torch uses 1' in fields['threads']
    assert {'Python', 'PyTorch', 'mmdfkd commit', 'torchvision operators'} <= set(fields)


def test_commit_is_that_of_the_working_tree(tmp_path, monkeypatch):
    def git(*arguments):
        who = ('-c', 'user.name=a', '-c', 'user.email=a@b')
        command = ('git', '-C', str(tmp_path), *who, *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    package = tmp_path / 'mmdfkd'
    package.mkdir()
    source = package / '__init__.py'
    source.write_text('')
    monkeypatch.setattr(module.mmdfkd, '__file__', str(source))
    assert module.git_commit() == 'not run from a git working tree'
    git('init', '-q')
    git('add', '.')
    git('commit', '-qm', 'first')
    head = git('rev-parse', 'HEAD')
    assert module.git_commit() == head
    source.write_text('x = 1')
    assert module.git_commit() == f'{head} with local changes'
    # A copy that is installed inside somebody's repository has no commit of its own.
    nested = tmp_path / 'site-packages' / 'mmdfkd'
    nested.mkdir(parents=True)
    monkeypatch.setattr(module.mmdfkd, '__file__', str(nested / '__init__.py'))
    assert module.git_commit() == 'not run from a git working tree'


def test_a_broken_extension_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    assert module.mmcv_operators().startswith('not available')
