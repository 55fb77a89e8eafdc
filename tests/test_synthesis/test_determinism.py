"""Every source: the same seed gives the same images, and a run killed at any refresh goes on to
them, whatever files of later steps it finds."""

import copy
import shutil

import cv2
import numpy as np
import pytest
import torch
import toy
from synthesis_nets import classifier

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.registry import MODELS

STEPS = 4
ITEMS = [dict(g=g) for g in range(40, 52)]
POOL = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.ProceduralRenderer'),
    pool_size=6,
    num_workers=0,
)
GENERATOR = dict(
    type='mmdfkd.GeneratorSource',
    generator=dict(type='mmdfkd.ConvGenerator', noise_dims=8, channels=(8, 8), base=4),
    batch=2,
    every=1,
    share=0.5,
    bank=dict(capacity=6),
)
INVERSION = dict(
    type='mmdfkd.PixelInversionSource',
    source=POOL,
    images=4,
    every=2,
    batch=4,
    steps=6,
    lr=0.2,
    checks=1,
)
TARGET = [dict(type='mmdfkd.TargetPrior')]
LAYOUTS = dict(
    type='mmdfkd.LayoutInversionSource',
    source=dict(POOL, balance=False),
    images=6,
    every=2,
    batch=4,
    steps=4,
    starts=10,
    boxes=(1, 3),
)
SOURCES = dict(
    pooled=POOL,
    refined=dict(
        type='mmdfkd.RefinedSource',
        source=POOL,
        every=2,
        start=1,
        batch=2,
        steps=2,
        max_images=3,
        share=0.5,
    ),
    generator=GENERATOR,
    dfkt=dict(
        type='mmdfkd.PresetGeneratorSource',
        preset='dfkt',
        batch=2,
        generator=dict(channels=(8, 8, 8), base=4),
    ),
    fast=dict(
        type='mmdfkd.PresetGeneratorSource',
        preset='fast',
        batch=2,
        every=2,
        steps=2,
        first=1,
        start=0,
        generator=dict(channels=(8, 8), base=4),
        bank=dict(capacity=8),
    ),
    inversion=INVERSION,
    dropping=dict(
        INVERSION, priors=TARGET, sparse=dict(type='mmdfkd.PatchDropping', at=(0.3,), share=0.5)
    ),
    rebirth=dict(INVERSION, priors=TARGET, sparse=dict(type='mmdfkd.PatchRebirth', images=2)),
    warm=dict(INVERSION, priors=TARGET, start='bank'),
    layouts=LAYOUTS,
    # Scenes are composed of what an inner source draws that has learned since the first ones.
    layouts_of_refined=dict(
        LAYOUTS,
        source=dict(
            type='mmdfkd.RefinedSource',
            source=dict(POOL, balance=False),
            priors=TARGET,
            every=1,
            batch=2,
            steps=1,
            share=0.9,
        ),
    ),
    replay=dict(
        type='mmdfkd.ReplaySource',
        source=GENERATOR,
        prefill=4,
        every=1,
        batch=2,
        answers=True,
        views=2,
        bank=dict(capacity=8, policy='disagreement'),
        measure=4,
        measure_every=2,
    ),
    mixture=dict(
        type='mmdfkd.MixtureSource',
        sources=[POOL, INVERSION, GENERATOR],
        schedule=[(0, (1, 1, 0)), (3, (1, 1, 2))],
    ),
    folder=dict(type='mmdfkd.FolderSource', filter=dict(duplicates=None)),
)


@pytest.fixture(scope='module')
def networks():
    model = toy.detector_model()
    normalizer = Normalizer.from_config(toy.whole(model))
    detectors = [build_adapter(toy.build(model, seed), normalizer) for seed in (0, 1)]
    return dict(classifier=(classifier(0), classifier(1)), detector=detectors)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('somebodys')
    for number in range(6):
        image = np.random.default_rng(number).integers(0, 255, (20, 18, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f'{number}.png'), image)
    return folder


class Run:
    """The source's part of a run, step by step."""

    def __init__(self, name, networks, folder, root) -> None:
        kind, self.size = ('detector', toy.SIZE) if 'layouts' in name else ('classifier', 16)
        self.teacher, self.student = networks[kind]
        cfg = dict(SOURCES[name], **(dict(root=str(root)) if name == 'folder' else {}))
        self.source = MODELS.build(copy.deepcopy(cfg))
        self.source.folder = folder
        # What a third party drew before must not matter.
        torch.manual_seed(len(str(folder)))
        self.source.prepare(self.teacher, seed=3, image_size=(self.size,) * 2, device='cpu')

    def go_on(self, first=0, kept=None) -> 'Run':
        for step in range(first, STEPS):
            self.source.refresh(self.teacher, self.student, step)
            if kept is not None:
                kept(step + 1)
        return self


def _assert_same(a, b, where) -> None:
    if torch.is_tensor(a):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            _assert_same(*pair, f'{where}[{i}]')
    else:
        assert a == b, where


def _assert_same_end(a, b, where) -> None:
    _assert_same(a.source.state_dict(), b.source.state_dict(), where)
    assert torch.equal(a.source.draw(ITEMS)[0], b.source.draw(ITEMS)[0]), where


@pytest.mark.parametrize('name', SOURCES)
def test_the_same_bank_again_and_after_a_kill(name, networks, root, tmp_path):
    folder = tmp_path / 'through'
    through = Run(name, networks, folder, root)
    through.source.fill(through.teacher)
    states, disks = {}, {}

    def kept(step):
        states[step] = copy.deepcopy(through.source.state_dict())
        disks[step] = tmp_path / f'disk{step}'
        shutil.copytree(folder, disks[step], dirs_exist_ok=True) if folder.exists() else None

    through.go_on(kept=kept)

    again = Run(name, networks, tmp_path / 'again_elsewhere', root)
    again.source.fill(again.teacher)
    _assert_same_end(again.go_on(), through, 'again')

    for step in range(1, STEPS):
        # Its checkpoint is of this step; the next one was done when it was killed.
        resumed = Run(name, networks, disks[step + 1], root)
        resumed.source.load_state_dict(states[step])
        _assert_same_end(resumed.go_on(step), through, f'killed after {step + 1}')


def test_every_source_is_here():
    """All that are registered, but those whose images are a function of the sample alone."""
    known = {MODELS.get(cfg['type']) for cfg in SOURCES.values()}
    from mmdfkd.synthesis import SyntheticSource, sources

    every = {
        value
        for value in vars(sources).values()
        if isinstance(value, type) and issubclass(value, SyntheticSource)
    }
    left = {kind.__name__ for kind in every - known if not getattr(kind, '__abstractmethods__', ())}
    assert left == {'DatasetSource', 'RenderedSource'}
