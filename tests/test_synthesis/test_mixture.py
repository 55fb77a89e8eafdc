"""Mixtures: shares that hold and change; parts that keep what is theirs."""

import numpy as np
import pytest
import torch
from synthesis_nets import classifier

from mmdfkd.adapters import Targets
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import SyntheticSource
from mmdfkd.synthesis.sources.mixture import MixtureSource

ITEMS = [dict(g=g) for g in range(24)]


class Flat(SyntheticSource):
    """Images of one level, which know their seed; counts what is asked of it."""

    def __init__(self, level=0.0, targets=(), items=False):
        super().__init__()
        self.level, self.shows, self.needs_items = level, targets, items
        self.calls = []
        self.register_buffer('refreshed', torch.zeros((), dtype=torch.int64))

    def prepare(self, teacher, **kwargs):
        super().prepare(teacher, **kwargs)
        self.calls.append('prepare')

    def fill(self, teacher):
        self.calls.append('fill')

    def refresh(self, teacher, student, iteration):
        self.refreshed += 1
        return dict(level=self.level)

    def draw(self, items):
        images = torch.full((len(items), 3, *self.image_size), self.level)
        images[:, 0, 0, 0] = torch.tensor([self.rng('flat', i['g']).random() for i in items])
        g = torch.tensor([item['g'] for item in items])
        boxes = [torch.full((2, 4), float(i)) for i in g]
        found = dict(labels=g, boxes=boxes, box_labels=[torch.zeros(2).long() + i for i in g])
        return images, Targets(**{name: found[name] for name in self.shows})

    def draw_for(self, items, labels):
        return self.draw(items)[0] + torch.as_tensor(labels)[:, None, None, None]


@pytest.fixture(scope='module', autouse=True)
def registered():
    MODELS.register_module(module=Flat, name='FlatForTests')
    yield
    MODELS.module_dict.pop('FlatForTests')


def flat(level, **kwargs) -> dict:
    return dict(type='FlatForTests', level=level, **kwargs)


def mixture(*parts, seed=3, folder=None, **kwargs) -> MixtureSource:
    source = MixtureSource(parts or (flat(0.25), flat(0.75)), **kwargs)
    source.folder = folder
    source.prepare(None, seed=seed, image_size=(4, 4), device='cpu')
    return source


def shares(source, count=4000) -> np.ndarray:
    chosen = [source.which(g) for g in range(count)]
    return np.bincount(chosen, minlength=len(source.sources)) / count


def test_a_draw_depends_on_its_index_only():
    source = mixture()
    torch.manual_seed(0)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    images, targets = source.draw(ITEMS)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(np_state, np.random.get_state()[1])
    assert targets == Targets()
    assert torch.equal(source.draw([ITEMS[7], ITEMS[19], ITEMS[2]])[0], images[[7, 19, 2]])
    levels = [source.sources[source.which(g)].level for g in range(24)]
    assert set(levels) == {0.25, 0.75}
    assert images[:, 1, 1, 1].tolist() == levels
    assert torch.equal(mixture().draw(ITEMS)[0], images)
    assert not torch.equal(mixture(seed=4).draw(ITEMS)[0][:, 1], images[:, 1])


def test_weights_are_shares():
    assert np.abs(shares(mixture(weights=[1, 3])) - [0.25, 0.75]).max() < 0.03
    three = mixture(flat(0.1), flat(0.2), flat(0.3))
    assert np.abs(shares(three) - 1 / 3).max() < 0.03


def test_schedule_is_piecewise_linear_and_moves_few_samples():
    schedule = [(10, [1, 0, 0]), (20, [0, 1, 0]), (40, [0, 2, 2])]
    source = mixture(flat(0.1), flat(0.2), flat(0.3), schedule=schedule)
    for step, want in {
        0: [1, 0, 0],
        10: [1, 0, 0],
        15: [0.5, 0.5, 0],
        20: [0, 1, 0],
        30: [0, 0.75, 0.25],
        99: [0, 0.5, 0.5],
    }.items():
        np.testing.assert_allclose(source.shares_at(step), want, atol=1e-12)
        logs = source.refresh(None, None, step)
        np.testing.assert_allclose([logs[f'mixture/{i}'] for i in range(3)], want, atol=1e-12)
        assert np.abs(shares(source, 2000) - want).max() < 0.04
    # A small change of the shares changes the part of few samples only.
    source.refresh(None, None, 14)
    before = [source.which(g) for g in range(1000)]
    source.refresh(None, None, 15)
    assert 0.05 < np.mean([a != source.which(g) for g, a in enumerate(before)]) < 0.16


def test_a_resumed_run_mixes_alike():
    """The step is all that it needs; it is given before the first draw."""
    schedule = [(0, [1, 0]), (8, [0, 1])]
    through = mixture(schedule=schedule)
    for step in range(6):
        through.refresh(None, None, step)
    resumed = mixture(schedule=schedule)
    resumed.load_state_dict(through.state_dict())
    resumed.refresh(None, None, 5)
    assert torch.equal(through.draw(ITEMS)[0], resumed.draw(ITEMS)[0])
    assert int(resumed.sources[0].refreshed) == 7


def test_parts_have_their_own_seed_folder_and_names(tmp_path):
    source = mixture(folder=tmp_path)
    assert [part.folder for part in source.sources] == [tmp_path / 'part0', tmp_path / 'part1']
    assert source.sources[0].seed == 3 != source.sources[1].seed
    assert source.refresh(None, None, 0) == {'0/level': 0.25, '1/level': 0.75}
    source.fill(None)
    assert all(part.calls == ['prepare', 'fill'] for part in source.sources)
    other = MixtureSource([flat(0.5), dict(type='mmdfkd.RenderedSource')])
    other.prepare(None, seed=0, image_size=(4, 4), device='cpu')
    assert other.refresh(None, None, 0) == {'level': 0.5}
    assert other.needs_items and not source.needs_items


def test_a_part_without_a_share_to_come_rests():
    source = mixture(schedule=[(0, [1, 0]), (4, [0, 1])])
    for step in range(10):
        source.refresh(None, None, step)
    # The first has a share until step 4, the second is made ready from the start.
    assert [int(part.refreshed) for part in source.sources] == [4, 10]


def test_targets_come_where_all_have_them():
    both = dict(targets=('labels', 'boxes', 'box_labels'))
    _, targets = mixture(flat(0.1, **both), flat(0.9, **both)).draw(ITEMS)
    assert targets.labels.tolist() == list(range(24))
    assert [float(b[0, 0]) for b in targets.boxes] == list(range(24))
    assert [int(b[1]) for b in targets.box_labels] == list(range(24))
    _, targets = mixture(flat(0.1, **both), flat(0.9, targets=('labels',))).draw(ITEMS)
    assert targets.labels is not None and targets.boxes is targets.box_labels is None
    assert mixture(flat(0.1, **both), flat(0.9)).draw(ITEMS)[1] == Targets()


def test_draws_for_classes_go_to_the_parts():
    source = mixture()
    labels = np.arange(24)
    images = source.draw_for(ITEMS, labels)
    assert torch.equal(images, source.draw(ITEMS)[0] + torch.arange(24)[:, None, None, None])


def test_mixes_real_sources_and_keeps_their_state():
    """A pool and a refined pool of a real teacher: the ring comes back from the state."""
    pool = dict(
        type='mmdfkd.PooledSource',
        renderer=dict(type='mmdfkd.ProceduralRenderer'),
        pool_size=8,
        num_workers=0,
    )
    refined = dict(type='mmdfkd.RefinedSource', source=pool, every=1, batch=4, steps=1, share=1.0)

    def made():
        source = MODELS.build(dict(type='mmdfkd.MixtureSource', sources=[pool, refined]))
        source.prepare(teacher, seed=0, image_size=(16, 16), device='cpu')
        return source

    teacher = classifier(0)
    source = made()
    logs = source.refresh(teacher, classifier(1), 0)
    assert 'refined/after' in logs
    again = made()
    assert not torch.equal(again.draw(ITEMS)[0], source.draw(ITEMS)[0])
    again.load_state_dict(source.state_dict())
    assert torch.equal(again.draw(ITEMS)[0], source.draw(ITEMS)[0])
    assert not torch.equal(source.sources[0].pool, source.sources[1].source.pool)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(weights=[1]), '1 weights for 2 sources'),
        (dict(weights=[1, -1]), 'negative'),
        (dict(weights=[0, 0]), 'all zero'),
        (dict(weights=[1, float('inf')]), 'all zero'),
        (dict(weights=[1, 0]), r'sources \[1\] never'),
        (dict(weights=[1, 1], schedule=[(0, [1, 1])]), 'not both'),
        (dict(schedule=[(5, [1, 0]), (5, [0, 1])]), 'steps'),
        (dict(schedule=[(-1, [1, 1])]), 'steps'),
        (dict(schedule=[]), 'steps'),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=f'MixtureSource: .*{match}'):
        mixture(**kwargs)


def test_an_ordinary_dataset_cannot_be_mixed():
    with pytest.raises(TypeError, match='FolderSource'):
        mixture(flat(0.1), dict(type='mmdfkd.DatasetSource'))
