"""The benchmark of starts: its rows and sizes, a whole small run, and how it goes on."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch
from mmengine.config import Config
from tiny_runs import ROOT

from mmdfkd.evaluation import read_results
from mmdfkd.inheritance import recipe_of, shrink_config


@pytest.fixture
def tool(tmp_path, monkeypatch):
    path = ROOT / 'tools' / 'benchmarks' / 'inheritance.py'
    spec = importlib.util.spec_from_file_location('inheritance_benchmark', path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'RESULTS', tmp_path / 'inheritance.jsonl')
    # Lines of other benchmarks in the same file stay, and are nobody's run here.
    shutil.copy(ROOT / 'docs' / 'results' / 'inheritance.jsonl', module.RESULTS)
    lines = [json.loads(line) for line in module.RESULTS.read_text().splitlines()]
    names = {own.name for own in module.SETS.values()}
    others = [json.dumps(line) for line in lines if line['set'] not in names]
    module.RESULTS.write_text('\n'.join(others) + '\n')
    yield module
    del sys.modules[spec.name]


def test_rows_are_recipes_and_sizes_what_they_say(tool):
    recipes = set()
    for row, parts in tool.ROWS.items():
        if row != tool.RANDOM:
            rest = {k: v for k, v in parts.items() if k != 'patches'}
            recipes.add((recipe_of(**rest), parts.get('patches')))
    assert len(recipes) == len(tool.ROWS) - 1
    for own in tool.SETS.values():
        cfg = Config.fromfile(ROOT / own.config)
        teacher = Config.fromfile(cfg.model.teacher.config)
        for size, shares in tool.SIZES.items():
            arches = [m.backbone.arch for m in (shrink_config(teacher, **shares), teacher.model)]
            blocks = [
                a.num_layers * a.embed_dims * (4 * a.embed_dims + 2 * a.feedforward_channels)
                for a in arches
            ]
            assert 100 * blocks[0] / blocks[1] == pytest.approx(size, abs=3)


def test_every_start_is_measured_and_trained(tool):
    runs = list(tool.Plan('digits').runs())
    assert len(runs) == len(set(runs)) == 3 * (2 * len(tool.ROWS) - 1)
    assert {r.row for r in runs if r.steps} == set(tool.ROWS)
    assert not any(r.row == tool.RANDOM and not r.steps for r in runs)
    named = tool.Plan('digits', rows=['rotation + layers'], sizes=(25,), steps=50)
    assert [r.steps for r in named.runs()] == [0, 50]
    assert [r.steps for r in tool.Plan('digits', rows=['slice'], sizes=(25,), steps=0).runs()] == [
        0
    ]
    # Lines on a part of the test images are others'.
    part = next(iter(tool.Plan('cifar10', test_images=1000).runs()))
    assert part.set == 'cifar10, 1000 test images' and part not in list(tool.Plan('cifar10').runs())


def test_a_run_writes_its_lines_and_goes_on(tool, tmp_path, monkeypatch, capsys):
    import mmcv

    for name in ('STATISTICS', 'HELD_OUT'):
        assert getattr(tool, name) > 1 << 30
    monkeypatch.setattr(tool, 'IMAGES', 16)
    monkeypatch.setitem(tool.BATCH, 'quick', 4)
    generator = torch.Generator().manual_seed(0)
    for label in range(10):
        image = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        mmcv.imwrite(image.numpy(), str(tmp_path / 'set' / 'val' / str(label) / '0.png'))
    argv = ['--rows', 'select', 'random', '--sizes', '25', '--steps', '10']
    argv += ['--test-images', '4', '--data-root', str(tmp_path / 'set')]
    tool.main(argv)
    lines = [line for line in read_results(tool.RESULTS) if '4 test' in line['set']]
    assert [(line['row'], line['steps']) for line in lines] == [
        ('random', 10),
        ('select', 0),
        ('select', 10),
    ]
    for line in lines:
        assert set(line['metrics']) == {'accuracy', 'agreement', 'kl'}
        assert 0.22 < line['student'] < 0.28
        assert str(tmp_path) not in line['command'] and 'DATA_ROOT' in line['command']
    assert lines[1]['metrics']['kl'] != lines[2]['metrics']['kl']
    capsys.readouterr()
    tool.main([*argv, '--dry-run'])
    assert capsys.readouterr().out.count('done     digits deit, 4 test images, 25 %') == 3


def test_missing_set_is_named(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match='digits_classification.py'):
        tool.Benchmark(tool.Plan('digits'), str(tmp_path))
