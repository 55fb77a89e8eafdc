"""The documents: links, names, settings and examples are those of the code."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import mmdfkd.registry as registries
from mmdfkd.utils.arguments import accepted_arguments

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('docs', 'configs', 'tools', 'mmdfkd', 'tests', '.github')
# Not a class: how a run names a student that is derived from its teacher.
SPECIAL = {'Shrunk'}

FENCE = re.compile(r'^(`{3,})(\w*)[^\n]*\n(.*?)^\1[ \t]*$', re.M | re.S)
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')
EXAMPLE = re.compile(r'^<!-- file: (\w+)\.py -->\n```python\n(.*?)^```$', re.M | re.S)
TABLE = re.compile(r'^<!-- parameters: ([\w.]+)(?: \+ (\w+))? -->\n\n?((?:^\|.*\n)+)', re.M)
NODES = [node for node in vars(registries).values() if isinstance(node, registries.Registry)]


def documents() -> list[Path]:
    return sorted([*ROOT.glob('*.md'), *(p for f in FOLDERS for p in (ROOT / f).rglob('*.md'))])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """A document without its blocks and literals of code."""
    return re.sub(r'`[^`\n]*`', '', FENCE.sub('', text))


def anchors(text: str) -> set[str]:
    """What a heading is linked by, as GitHub makes it."""
    headings = re.findall(r'^#+ (.+)$', FENCE.sub('', text), re.M)
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}


def registered(name: str):
    """The class of ``mmdfkd.<name>``, or None."""
    for node in NODES:
        try:
            found = node.get(f'mmdfkd.{name}')
        except ImportError:
            continue
        if found is not None:
            return found
    return None


def resolve(dotted: str):
    """What a dotted name of the package stands for.

    Raises:
        AttributeError: If it stands for nothing.
    """
    parts = dotted.split('.')
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(dotted)


def code(path: Path) -> list[str]:
    return [body for _, kind, body in FENCE.findall(path.read_text()) if kind == 'python']


@pytest.mark.parametrize('path', documents(), ids=name_of)
def test_links_lead_somewhere(path):
    wrong = []
    for link in LINK.findall(prose(path.read_text())):
        if re.match(r'\w+:', link):
            continue
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            wrong.append(link)
    assert not wrong, f'{name_of(path)} links to nothing by {wrong}'


@pytest.mark.parametrize('path', documents(), ids=name_of)
def test_names_are_in_the_code(path):
    text = path.read_text()
    # What the document itself defines is registered once its examples are run.
    own = set(re.findall(r'^class (\w+)', text, re.M))
    wrong = []
    for dotted in set(re.findall(r'\bmmdfkd(?:\.\w+)+', text)):
        name = dotted.split('.', 1)[1]
        if name == 'X' or name in own | SPECIAL:
            continue
        try:
            resolve(dotted)
        except AttributeError:
            if '.' in name or registered(name) is None:
                wrong.append(dotted)
    assert not wrong, f'{name_of(path)} names {wrong}'


@pytest.mark.parametrize('path', documents(), ids=name_of)
def test_files_named_in_text_exist(path):
    text = FENCE.sub('', path.read_text())
    rooms = '|'.join(('mmdfkd', 'configs', 'tools', 'tests', 'requirements'))
    wrong = []
    for name in re.findall(rf'`((?:{rooms})/[\w./-]*)`', text):
        # Names of files yet to be made, and what only a wheel has.
        if not re.search(r'\bx\.py$|test_x|\.mim', name) and not (ROOT / name).exists():
            wrong.append(name)
    assert not wrong, f'{name_of(path)} names files that are not there: {wrong}'


@pytest.mark.parametrize('path', [p for p in documents() if code(p)], ids=name_of)
def test_code_compiles_and_settings_are_known(path):
    """Of every ``dict(type='mmdfkd.X', ...)``, the class takes the keywords."""
    own = set(re.findall(r'^class (\w+)', path.read_text(), re.M))
    wrong = []
    for block in code(path):
        for node in ast.walk(ast.parse(block)):
            if not (isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict'):
                continue
            # mmengine's own: what the base config says there is dropped.
            given = {k.arg: k.value for k in node.keywords if k.arg != '_delete_'}
            kind = getattr(given.pop('type', None), 'value', None)
            if not isinstance(kind, str) or not kind.startswith('mmdfkd.'):
                continue
            name = kind.split('.', 1)[1]
            if name in own:
                continue
            if name == 'Shrunk':
                valid = [*inspect.signature(resolve(_SHRINK)).parameters][1:] + ['init']
            else:
                valid = accepted_arguments(registered(name))
            wrong += [f'{name}.{key}' for key in given if valid and key not in valid]
    assert not wrong, f'{name_of(path)} sets {wrong}'


_SHRINK = 'mmdfkd.inheritance.shrink.shrink_config'


def rows(table: str) -> dict[str, str]:
    """Names and defaults of a table whose first two columns are these, as code."""
    found = {}
    for line in table.splitlines()[2:]:
        name, default = (cell.strip() for cell in line.strip('|').split('|')[:2])
        found[name.strip('`')] = default
    return found


def pages() -> list[Path]:
    return sorted((ROOT / 'docs').rglob('*.md'))


def tables() -> list[tuple[str, str, str]]:
    return [table for path in pages() for table in TABLE.findall(path.read_text())]


def target_of(dotted: str):
    """What a table is of: a name of the package, or a registered class."""
    try:
        return resolve(dotted)
    except AttributeError:
        return registered(dotted.split('.', 1)[1])


def own_settings(target) -> dict:
    """Names and defaults of the settings that a class or function names itself."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        name: p.default
        for name, p in inspect.signature(target).parameters.items()
        if p.kind not in kinds and name not in ('teacher_cfg', 'init_cfg')
    }


def test_there_are_tables():
    markers = sum(path.read_text().count('<!-- parameters: ') for path in pages())
    assert len(tables()) == markers > 30


@pytest.mark.parametrize(
    ('dotted', 'also', 'table'), tables(), ids=lambda v: v if v.startswith('mmdfkd') else ''
)
def test_settings_and_defaults_are_those_of_the_code(dotted, also, table):
    """Every setting is listed, and no other; a default is as written, none is 'required'."""
    real = own_settings(target_of(dotted))
    listed = rows(table)
    assert set(listed) - {also} == set(real)
    for name, default in real.items():
        if default is inspect.Parameter.empty:
            assert listed[name] == 'required', name
            continue
        written = eval(listed[name].strip('`'), {'__builtins__': {}, 'dict': dict})
        same = list(written) == list(default) if isinstance(default, tuple) else written == default
        assert same, f'{name}: the document says {written!r}, the code {default!r}'


HEADS = ROOT / 'docs' / 'heads.md'


def registered_heads() -> dict[str, type]:
    """The package's distill heads by name; not those that a document's examples register."""
    base = importlib.import_module('mmdfkd.heads').DistillHead
    return {
        name: cls
        for name, cls in registries.MODELS.module_dict.items()
        if issubclass(cls, base) and cls.__module__.startswith('mmdfkd.')
    }


def test_every_head_has_a_section_and_tables():
    """Its own settings and those of its bases are listed, and both pages name it."""
    base = resolve('mmdfkd.heads.DistillHead')
    documented = {target_of(dotted) for dotted, _, _ in tables()}
    listed = (ROOT / 'docs' / 'configuration.md').read_text()
    headings = re.findall(r'^### `mmdfkd\.(\w+Head)`$', HEADS.read_text(), re.M)
    heads = registered_heads()
    assert sorted(headings) == sorted(heads)
    for name, cls in heads.items():
        assert f'[`mmdfkd.{name}`](heads.md#mmdfkd{name.lower()})' in listed, name
        for one in cls.__mro__:
            # Being registered, a class without settings of its own gets its base's __init__.
            own = one.__init__.__qualname__ == f'{one.__name__}.__init__'
            if issubclass(one, base) and own and own_settings(one):
                assert one in documented, f'{name}: no table of {one.__name__}'


def test_examples_of_heads_build():
    """Every example of the page is one that the class takes, and every head has one."""
    shown = set()
    for block in code(HEADS):
        names = {}
        exec(compile(block, str(HEADS), 'exec'), names)
        for head in names.get('heads', ()):
            shown.add(type(registries.MODELS.build(dict(head))).__name__)
    assert shown == set(registered_heads())


@pytest.mark.parametrize(
    'path', [p for p in documents() if EXAMPLE.search(p.read_text())], ids=name_of
)
def test_examples_run(path, tmp_path, monkeypatch):
    """The files printed in a document work, by the tests printed beside them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    # An example may add a family; it goes with the test.
    families = importlib.import_module('mmdfkd.adapters')
    monkeypatch.setattr(families, 'FAMILIES', families.FAMILIES)
    names = []
    for name, body in EXAMPLE.findall(path.read_text()):
        (tmp_path / f'{name}.py').write_text(body)
        names.append(name)
    ran = 0
    for module in map(importlib.import_module, names):
        for name, function in list(vars(module).items()):
            if name.startswith('test_'):
                function()
                ran += 1
    assert ran, f'{name_of(path)} prints no test'
