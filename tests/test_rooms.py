"""A room imports only the rooms listed before it."""

import ast
from pathlib import Path

import pytest

import mmdfkd

PACKAGE = Path(mmdfkd.__file__).parent
ROOMS = (
    'utils',
    'losses',
    'models',
    'datasets',
    'adapters',
    'inheritance',
    'heads',
    'synthesis',
    'distillers',
    'evaluation',
    'visualization',
    'engine',
)
# Beside the rooms: what every room may use.
COMMON = ('registry', 'version')


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, also inside functions, as dotted
    names."""
    package = ('mmdfkd', *path.relative_to(PACKAGE).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *([node.module] if node.module else [])]
            stem = '.'.join(parts)
            names.add(stem)
            if stem == 'mmdfkd':
                names.update(f'mmdfkd.{alias.name}' for alias in node.names)
    return {name for name in names if name.split('.')[0] == 'mmdfkd'}


def files():
    return sorted(p for p in PACKAGE.rglob('*.py') if '.mim' not in p.parts)


def test_every_folder_is_a_room():
    found = {p.parent.name for p in PACKAGE.glob('*/__init__.py')}
    assert found <= set(ROOMS)


@pytest.mark.parametrize('path', files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_backwards(path):
    room = path.relative_to(PACKAGE).parts[0]
    # The package itself and its registry stand on the ground floor.
    before = ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else ('utils',)
    allowed = {*before, *COMMON}
    wrong = []
    for name in imported(path):
        parts = name.split('.')
        if len(parts) == 1 or parts[1].startswith('__'):
            continue
        target = parts[1]
        if target not in allowed:
            wrong.append(name)
    assert not wrong, f'{room} may not import {wrong}'


def test_the_reader_of_imports_sees_all_kinds(tmp_path, monkeypatch):
    """The test itself: absolute, relative and nested imports are found."""
    monkeypatch.setitem(globals(), 'PACKAGE', tmp_path)
    room = tmp_path / 'models' / 'necks'
    room.mkdir(parents=True)
    path = room / 'x.py'
    path.write_text(
        'import mmdfkd.heads.base\n'
        'import torch\n'
        'from mmdfkd import engine\n'
        'from ...losses import pkd\n'
        'from ..layers import LayerNorm2d\n'
        'from . import y\n'
        'def f():\n'
        '    from mmdfkd.distillers.student import Student\n'
    )
    assert imported(path) == {
        'mmdfkd.heads.base',
        'mmdfkd',
        'mmdfkd.engine',
        'mmdfkd.losses',
        'mmdfkd.models.layers',
        'mmdfkd.models.necks',
        'mmdfkd.distillers.student',
    }
