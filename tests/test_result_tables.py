"""The tables in the documents are those of the committed results."""

import re
from pathlib import Path

import pytest

import mmdfkd  # noqa: F401
from mmdfkd.evaluation import insert_tables, read_results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / 'docs' / 'results').glob('*.jsonl'))
DOCUMENTS = [
    ROOT / 'README.md',
    *sorted((ROOT / 'docs').rglob('*.md')),
    *sorted((ROOT / 'configs').rglob('*.md')),
]


@pytest.mark.parametrize('path', RESULTS, ids=lambda p: p.stem)
def test_tables_are_generated(path):
    results = read_results(path)
    shown = [d for d in DOCUMENTS if re.search(rf'<!-- results:{path.stem}[ >]', d.read_text())]
    assert shown, f'no document shows {path.name}'
    for document in shown:
        text = document.read_text()
        assert insert_tables(text, results) == text, (
            f'{document.name}: run tools/analysis_tools/results_table.py {path.name} --into it'
        )
