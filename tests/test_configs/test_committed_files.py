"""What is committed is what the documents say of it: teachers' files, and what a step costs."""

import re

import pytest
import yaml
from tiny_runs import ROOT
from torch import Tensor

from mmdfkd.evaluation import read_results
from mmdfkd.utils.checkpoint import read_checkpoint, sha256

CONFIGS = ROOT / 'configs'
CHECKPOINTS = sorted(path.relative_to(ROOT).as_posix() for path in CONFIGS.glob('*/*.pth'))
#: Most bytes of a committed teacher: 6 MB, and 14 MB for a DETR.
MOST, MOST_DETR = 6_000_000, 14_000_000


def named() -> set[str]:
    """The files that a metafile gives as weights or a README links to."""
    found = set()
    for path in CONFIGS.glob('*/metafile.yml'):
        meta = yaml.safe_load(path.read_text())
        found |= {model.get('Weights', '') for model in meta['Models']}
    for path in CONFIGS.glob('*/README.md'):
        for link in re.findall(r'\]\(([\w.-]+\.pth)\)', path.read_text()):
            found.add((path.parent / link).relative_to(ROOT).as_posix())
    return {name for name in found if name and '://' not in name}


def test_every_committed_checkpoint_is_named_and_every_named_one_is_there():
    assert len(CHECKPOINTS) >= 6
    assert named() == set(CHECKPOINTS)


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_checksum_and_size(name):
    path = ROOT / name
    # The row of the file, or of its config: the checksum in it is of this file and no other.
    rows = [
        line
        for line in (path.parent / 'README.md').read_text().splitlines()
        if re.search(rf'\]\({path.stem}\.(py|pth)\)', line) and re.search('[0-9a-f]{64}', line)
    ]
    assert len(rows) == 1, f'{path.parent.name}/README.md has {len(rows)} checksums of {path.name}'
    assert re.findall('[0-9a-f]{64}', rows[0]) == [sha256(path)]
    assert path.stat().st_size <= (MOST_DETR if 'detr' in path.stem else MOST)


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_tensors_only(name):
    """By the reader that runs nothing: weights, and texts that say whose they are."""
    content = read_checkpoint(ROOT / name, max_bytes=MOST_DETR)
    state = content.pop('state_dict')
    assert state and all(isinstance(value, Tensor) for value in state.values())
    # Next to them nothing but plain data.
    assert set(content) <= {'meta'} and _plain(content)


def _plain(value) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_a_frozen_step_is_faster_and_within_the_goal():
    """At most 2.6 gradient-free forwards: what is measured, of every network measured."""
    lines = read_results(ROOT / 'docs' / 'results' / 'source_cost.jsonl')
    steps = {(line['set'], line['row']): line['metrics'] for line in lines}
    sets = {name for name, row in steps if row.endswith('frozen step')}
    assert {'deit', 'deit-128px', 'vitdet'} <= sets
    for name in sets:
        frozen, unfrozen = steps[name, 'frozen step'], steps[name, 'unfrozen step']
        assert frozen['images_per_second'] > unfrozen['images_per_second'], name
        assert 1 < frozen['in_forwards'] <= 2.6, name
