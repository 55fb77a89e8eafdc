"""One folder a method: its README names what the benchmark measures, its metafile what there is."""

import re

import pytest
import yaml
from tiny_runs import ROOT

MARKER = re.compile(r'<!-- results:heads row=(\S+) -->')
FOLDERS = sorted(
    path.parent.name
    for path in (ROOT / 'configs').rglob('metafile.yml')
    if MARKER.search((path.parent / 'README.md').read_text())
    or any(path.parent.glob('*_to_*_cifar10.py'))
)


@pytest.fixture(scope='module')
def rows():
    """The benchmark's rows and their configs, read from its text: nothing is imported."""
    text = (ROOT / 'tools' / 'benchmarks' / 'heads.py').read_text()
    found = dict(re.findall(r"^    '([^']+)': '(\w+/[\w-]+(?:\.py)?)',$", text, re.M))
    # As a marker names them.
    words = {name.replace(',', '').replace(' ', '_'): path for name, path in found.items()}
    return words | {'KL': 'kd/kd'}


def test_every_method_of_the_benchmark_has_a_folder(rows):
    assert len(FOLDERS) > 20
    assert {path.split('/')[0] for path in rows.values()} <= set(FOLDERS)


@pytest.mark.parametrize('name', FOLDERS)
def test_a_folder_is_whole(name, rows):
    folder = ROOT / 'configs' / name
    readme, meta = (folder / 'README.md').read_text(), (folder / 'metafile.yml').read_text()
    meta = yaml.safe_load(meta)
    runs = {p.name for p in folder.glob('*_to_*.py')} | {p.name for p in folder.glob('pkd_*.py')}
    listed = {ROOT / model['Config'] for model in meta['Models']}
    assert runs <= {path.name for path in listed} and all(path.is_file() for path in listed)
    assert {model['In Collection'] for model in meta['Models']} == {meta['Collections'][0]['Name']}
    assert meta['Collections'][0]['README'] == f'configs/{name}/README.md'
    for run in runs:
        assert f'configs/{name}/{run}' in readme, f'{run} is not in the README'
        # The first line says what it is, and the next how it is run.
        assert f'configs/{name}/{run}' in (folder / run).read_text()
    # The equation, and a word on figures.
    assert re.search(r'^L\w* = |`.*CE\(', readme, re.M)
    assert 'ublished' in readme or 'Ours' in readme
    for asked in MARKER.findall(readme):
        asked = asked.split(',')
        # What it is measured against comes first: KL alone, of the same student.
        assert re.match(r'KL(_(?!\+)|$)', asked[0]) and set(asked) <= {
            *rows,
            'KL_+_aligned_features',
            'labels_only',
            'true_labels',
        }
        assert any(rows.get(row, '').startswith(f'{name}/') for row in asked)
