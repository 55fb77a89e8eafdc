import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import mmdfkd

ROOT = Path(__file__).resolve().parents[1]


def tracked(*folders: str) -> list[str]:
    """Files that belong to the project: git's, or all there are outside a clone."""
    command = ['git', '-C', str(ROOT), 'ls-files', '-z', *folders]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        names = result.stdout.split('\0')
    else:
        names = [
            str(file.relative_to(ROOT))
            for folder in folders or ('.',)
            for file in (ROOT / folder).rglob('*')
            if not {'__pycache__', '.venv', 'data', 'work_dirs'} & set(file.parts)
        ]
    return sorted(name for name in names if name and (ROOT / name).is_file())


def pip(*arguments) -> None:
    command = [sys.executable, '-m', 'pip', *map(str, arguments), '--no-deps', '--no-index']
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope='module')
def build(tmp_path_factory):
    """A source tree, and the wheel that was built from it without network."""
    tree = tmp_path_factory.mktemp('tree')
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    # What an earlier build left of a file that is gone from the tree.
    stale = tree / 'build' / 'lib' / 'mmdfkd' / 'stale.py'
    stale.parent.mkdir(parents=True)
    stale.write_text('')
    out = tmp_path_factory.mktemp('wheel')
    pip('wheel', '--no-build-isolation', '-w', out, tree)
    (wheel,) = out.glob('mmdfkd-*.whl')
    return tree, wheel


def test_wheel_holds_package_configs_and_tools(build):
    tree, wheel = build
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = set(tracked('mmdfkd'))
    wanted |= {f'mmdfkd/.mim/{name}' for name in tracked('configs', 'tools', 'model-index.yml')}
    assert wanted - names == set()
    assert not [name for name in names if 'stale' in name or name.startswith(('tests/', 'tools/'))]
    assert not (tree / 'mmdfkd' / '.mim').exists(), 'the build has changed the source tree'


def test_wheel_installs_into_an_empty_prefix(build, tmp_path):
    _, wheel = build
    prefix = tmp_path / 'prefix'
    pip('install', '--target', prefix, wheel)
    code = """
import mmdfkd
from pathlib import Path
package = Path(mmdfkd.__file__).parent
import mmdfkd.utils.compatibility
print(package)
print(mmdfkd.__version__)
print((package / '.mim' / 'tools' / 'train.py').is_file())
print((package / '.mim' / 'model-index.yml').is_file())
print(len(list((package / '.mim' / 'configs').rglob('*.py'))))
"""
    result = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(prefix)},
    )
    assert result.returncode == 0, result.stderr
    configs = [name for name in tracked('configs') if name.endswith('.py')]
    assert result.stdout.split() == [
        str(prefix / 'mmdfkd'),
        mmdfkd.__version__,
        'True',
        'True',
        str(len(configs)),
    ]


def test_requirements_never_bring_a_toolbox_unasked(build):
    _, wheel = build
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith('.dist-info/METADATA')]
    metadata = Parser().parsestr(archive.read(name).decode())
    unasked = [line for line in metadata.get_all('Requires-Dist') if 'extra ==' not in line]
    assert unasked and not [line for line in unasked if re.match(r'(onedl-)?mm', line)]
    assert {'onedl', 'openmmlab', 'dev'} <= set(metadata.get_all('Provides-Extra'))
    assert metadata['Version'] == mmdfkd.__version__


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'requirements').glob('*.txt')), ids=lambda p: p.name
)
def test_every_requirement_is_pinned(path):
    lines = [line.split('#')[0].strip() for line in path.read_text().splitlines()]
    pattern = re.compile(r"[\w.-]+==[\w.]+(; python_version (<|>=) '3\.\d+')?")
    assert [line for line in lines if line and not pattern.fullmatch(line)] == []


def test_model_index_names_every_metafile():
    listed = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert sorted(listed) == [n for n in tracked('configs') if n.endswith('/metafile.yml')]


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert str(citation['version']) == mmdfkd.__version__
