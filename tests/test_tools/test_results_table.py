import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'analysis_tools' / 'results_table.py'
FIELDS = dict(
    benchmark='ablation',
    set='digits',
    student=0.39,
    row='noise',
    init='inherit',
    seed=0,
    metrics=dict(bbox_mAP=0.123),
    teacher=0.75,
    ceiling=None,
    steps=500,
    seconds=170,
    threads=2,
    commit='abc1234',
    command='python tools/train.py configs/dfkd_vitdet.py',
)


@pytest.fixture
def results(tmp_path):
    path = tmp_path / 'ablation.jsonl'
    path.write_text(json.dumps(FIELDS) + '\n')
    return path


@pytest.fixture(scope='module')
def main():
    spec = importlib.util.spec_from_file_location('results_table', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *args: module.main([str(arg) for arg in args])


def _process(*args) -> subprocess.CompletedProcess:
    # From another directory: the tool needs no particular one.
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=Path(args[0]).parent,
        env=os.environ | dict(PYTHONPATH=os.pathsep.join(paths)),
    )


def _document(folder: Path) -> Path:
    path = folder / 'page.md'
    path.write_text('before\n<!-- results:ablation -->\n<!-- /results -->\nafter\n')
    return path


def test_stale_table_ends_in_status_1(results, tmp_path):
    document = _document(tmp_path)
    stale = _process(results, '--into', document, '--check')
    assert stale.returncode == 1
    assert f'{results} --into {document}' in stale.stderr
    assert 'Traceback' not in stale.stderr
    assert '0.123' not in document.read_text()


def test_insert_and_check(results, tmp_path, main):
    document = _document(tmp_path)
    main(results, '--into', document)
    lines = document.read_text().splitlines()
    assert '| 0.123 |' in document.read_text()
    assert (lines[0], lines[-1]) == ('before', 'after')
    main(results, '--into', document, '--check')


def test_printed_without_a_document(results, main, capsys):
    main(results)
    assert '| noise |' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(results, '--check')


def test_every_committed_result_is_valid():
    """The files under docs/results hold what the tables are made from."""
    from mmdfkd.evaluation import read_results, results_markdown

    for path in (ROOT / 'docs' / 'results').glob('*.jsonl'):
        assert results_markdown(read_results(path))
