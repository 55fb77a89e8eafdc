"""The benchmark of what images cost: its rows, its processes and its memory."""

import contextlib
import gc
import importlib.util
import mmap
from pathlib import Path

import pytest
import torch
from tiny_runs import ROOT

from mmdfkd.registry import MODELS, TASK_UTILS


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'benchmarks' / 'source_cost.py'
    spec = importlib.util.spec_from_file_location('source_cost', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows(tool):
    """Each is named once, and its source is one that can be built."""
    for name, which in tool.SETS.items():
        rows = tool.rows_of(which)
        names = [row.name for row in rows]
        assert len(set(names)) == len(names) > 1, name
        for row in rows:
            if row.source['type'].endswith('Renderer'):
                TASK_UTILS.build(row.source)
            elif 'preset' not in row.source and row.start != 'files':
                MODELS.build(row.source)
    every = {row.name for row in tool.rows_of(tool.SETS['deit'])}
    assert {f'inversion: {name}' for name in (*tool.PRIORS, *tool.MODES)} < every
    with pytest.raises(SystemExit):
        tool.parse_args(['--rows', 'no such row'])


def test_every_prior_has_a_row(tool):
    sets = (*tool.PRIORS.values(), *tool.BATCH_NORM.values())
    used = {prior['type'].removeprefix('mmdfkd.') for one in sets for prior in one or ()}
    # Others may be registered, too: those of the documents' examples are.
    ours = {k: v for k, v in MODELS.module_dict.items() if v.__module__.startswith('mmdfkd.')}
    assert used == {name for name in ours if name.endswith('Prior')}


def test_every_source_has_a_row_or_a_reason(tool):
    used = {
        row.source['type'].removeprefix('mmdfkd.')
        for which in tool.SETS.values()
        for row in tool.rows_of(which)
    }
    assert {'NoiseRenderer', 'ProceduralRenderer'} <= used
    used |= {'RenderedSource'}
    used = {'GeneratorSource' if name == 'PresetGeneratorSource' else name for name in used}
    ours = {k: v for k, v in MODELS.module_dict.items() if v.__module__.startswith('mmdfkd.')}
    sources = {name for name in ours if name.endswith('Source')} - {'PresetGeneratorSource'}
    assert sources <= used | set(tool.WITHOUT_ROW)
    assert set(tool.WITHOUT_ROW) <= sources and not used & set(tool.WITHOUT_ROW)


def test_a_teacher_with_batch_norms(tool):
    teacher = tool.load_teacher(tool.SETS['resnet'], 'cpu')
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in teacher.net.modules())


@contextlib.contextmanager
def pages(count):
    """So many MiB of new ones: an allocator may hand out what tests before this one have freed."""
    with mmap.mmap(-1, count << 20) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        yield held


def test_a_row_has_a_process_of_its_own(tool):
    def hold():
        memory = tool.Memory(torch.device('cpu'))
        with pages(64):
            return memory.peak(), torch.get_num_threads()

    peak, threads = tool.in_a_child(hold, 2)
    assert 60 < peak < 90 and threads == 2

    def fail():
        raise ValueError('no images')

    with pytest.raises(RuntimeError, match='ValueError: no images'):
        tool.in_a_child(fail, 1)


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='Linux alone tells it')
@pytest.mark.parametrize('left', ['freed', 'garbage'])
def test_memory_of_before_is_not_of_a_row(tool, left):
    """Also what a collector frees between the fork and the first measure, or after it."""

    def hold():
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(pages(256))
            if left == 'garbage':
                # Freed by a collector only, which may come at any time.
                cycle = [held, stack.pop_all()]
                cycle.append(cycle)
                del cycle
            del held
        gc.disable()
        memory = tool.Memory(torch.device('cpu'))
        gc.collect()
        with pages(64):
            return memory.peak()

    assert 60 < tool.in_a_child(hold, 1) < 90


def test_measures_of_a_row(tool):
    """A generator-free row through a small teacher: two passes of each image's every step."""
    from mmpretrain.registry import MODELS as NETS

    from mmdfkd.adapters import Normalizer, build_adapter

    arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
    net = NETS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='VisionTransformer', arch=arch, img_size=16, patch_size=4),
            head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=24),
        )
    )
    teacher = build_adapter(net, Normalizer([127.0] * 3, [60.0] * 3, 'rgb'))
    which, images = tool.Set('', 16, 2, steps=3), torch.rand(2, 3, 16, 16)
    rows = {row.name: row for row in tool.rows_of(which)}
    wanted = {'inversion: class': 2 * 3 + 3, 'pool, scored': 1, 'procedural': 0}
    wanted |= {'folder, filtered': 1, 'replay, 4 views answered': 4}
    for name, passes in wanted.items():
        found, seconds = tool.measure(rows[name], teacher, teacher, which, images)
        assert found['teacher_passes'] == passes and found['in_forwards'] > 0
        assert found['images_per_second'] == pytest.approx(2 / seconds, rel=0.01)
    steps = tool.measure_steps(teacher, images, rounds=1)
    assert set(steps) == {tool.FORWARD, tool.FROZEN, tool.UNFROZEN}
    assert steps[tool.FORWARD][0]['in_forwards'] == 1
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
