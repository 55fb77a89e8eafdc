"""The dataset without files and its sampler: the same samples whatever workers and ranks."""

import itertools

import pytest
import torch
from mmengine.runner import Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator

from mmdfkd.datasets import GlobalIndexSampler, SyntheticDataset, samplers
from mmdfkd.registry import DATASETS

PROCEDURAL = dict(type='mmdfkd.ProceduralRenderer')


def loader(workers: int = 0, batch: int = 4, renderer: dict | None = PROCEDURAL):
    return Runner.build_dataloader(
        dict(
            dataset=dict(
                type='mmdfkd.SyntheticDataset', image_size=(24, 32), renderer=renderer, length=1000
            ),
            sampler=dict(type='mmdfkd.GlobalIndexSampler'),
            batch_size=batch,
            num_workers=workers,
        ),
        seed=0,
    )


def test_items():
    data = DATASETS.build(
        dict(
            type='mmdfkd.SyntheticDataset',
            image_size=16,
            renderer=PROCEDURAL,
            metainfo=dict(classes=('a', 'b')),
        )
    )
    item = data[5]
    assert item['g'] == 5
    assert item['image'].shape == (3, 16, 16)
    assert item['image'].dtype == torch.uint8
    assert data.metainfo['classes'] == ('a', 'b')
    assert SyntheticDataset(16)[10**9] == dict(g=10**9)


@pytest.mark.parametrize('size', [0, -1, (32,), (32, 0), (1, 2, 3), 3.0, 'ab', (32.0, 32)])
def test_bad_sizes(size):
    with pytest.raises(ValueError, match='image_size'):
        SyntheticDataset(size)


def test_bad_seed_and_length():
    with pytest.raises(ValueError, match='seed'):
        SyntheticDataset(8, seed=-1)
    with pytest.raises(ValueError, match='length'):
        SyntheticDataset(8, length=0)


def test_pixels_do_not_depend_on_workers():
    batches = [list(itertools.islice(iter(loader(workers)), 3)) for workers in (0, 2)]
    for alone, shared in zip(*batches, strict=True):
        assert alone['g'] == shared['g']
        assert all(torch.equal(a, b) for a, b in zip(alone['image'], shared['image'], strict=True))
    assert [b['g'] for b in batches[0]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize('world', [1, 2, 4])
def test_steps_see_the_same_samples_whatever_the_number_of_processes(monkeypatch, world):
    batch = 8 // world
    seen = []
    for rank in range(world):
        monkeypatch.setattr(samplers, 'get_dist_info', lambda rank=rank: (rank, world))
        stream = iter(GlobalIndexSampler(range(100)))
        seen.append([list(itertools.islice(stream, batch)) for _ in range(3)])
    for step in range(3):
        together = sorted(g for rank in seen for g in rank[step])
        assert together == list(range(step * 8, step * 8 + 8))


@pytest.mark.parametrize('world,rank', [(1, 0), (3, 2)])
@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_run_sees_what_an_uninterrupted_one_sees(monkeypatch, world, rank, workers):
    monkeypatch.setattr(samplers, 'get_dist_info', lambda: (rank, world))
    whole = _InfiniteDataloaderIterator(loader(workers, renderer=None))
    expected = [next(whole)['g'] for _ in range(9)]
    resumed = _InfiniteDataloaderIterator(loader(workers, renderer=None))
    if hasattr(resumed, 'skip_iter'):
        resumed.skip_iter(5)
    else:
        for _ in range(5):
            next(resumed)
    assert [next(resumed)['g'] for _ in range(4)] == expected[5:]


def test_skipped_items_are_not_rendered(monkeypatch):
    made = []
    monkeypatch.setattr(
        SyntheticDataset, '__getitem__', lambda self, g: made.append(g) or dict(g=g)
    )
    resumed = _InfiniteDataloaderIterator(loader())
    if not hasattr(resumed, 'skip_iter'):
        pytest.skip('this mmengine draws past items again')
    resumed.skip_iter(1000)
    next(resumed)
    assert made == [4000, 4001, 4002, 4003]


def test_sampler_never_ends():
    stream = iter(GlobalIndexSampler(range(3)))
    assert list(itertools.islice(stream, 7)) == list(range(7))
    with pytest.raises(ValueError, match='skip'):
        GlobalIndexSampler(range(3)).skip(-1)
