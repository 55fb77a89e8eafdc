"""What is worked out for a source is what it asks of its teacher."""

import cv2
import numpy as np
import pytest
import toy
from mmengine.config import Config

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.evaluation.teacher_passes import TeacherPasses, teacher_passes
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import SyntheticSource
from mmdfkd.synthesis.pass_count import counted
from mmdfkd.synthesis.priors.sub_boxes import SubBoxPrior, sub_boxes

SIZE = (32, 32)
POOLED = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.NoiseRenderer'),
    pool_size=6,
    num_workers=0,
)
INVERTED = dict(type='mmdfkd.PixelInversionSource', source=POOLED, images=4, steps=7, checks=3)
TARGET = [dict(type='mmdfkd.TargetPrior')]
#: Terms that ask a further time, and terms that ask the student, each in its own way.
CONTRASTIVE = [*TARGET, dict(type='mmdfkd.ContrastivePrior', memory=4)]
ADVERSARIES = [
    dict(type=f'mmdfkd.{name}Prior') for name in ('Divergence', 'LogitDistance', 'JensenShannon')
]
ATTENTION = dict(type='mmdfkd.AttentionConsistencyPrior')
GENERATOR = dict(type='mmdfkd.ConvGenerator', noise_dims=4, channels=(8, 8))
SOURCES = dict(
    pooled=POOLED,
    uniform=dict(POOLED, balance=False),
    refined=dict(
        type='mmdfkd.RefinedSource', source=POOLED, every=3, start=2, batch=2, steps=2, share=0.5
    ),
    generated=dict(
        type='mmdfkd.GeneratorSource', generator=GENERATOR, batch=3, every=2, steps=2, start=1
    ),
    preset=dict(
        type='mmdfkd.PresetGeneratorSource',
        preset='dfkt',
        batch=2,
        first=1,
        generator=dict(channels=(8, 8, 8)),
    ),
    inverted=INVERTED,
    without_half=dict(INVERTED, half=0.0, priors=TARGET),
    repeated=dict(INVERTED, every=2, batch=2, priors=TARGET),
    dropping=dict(
        INVERTED, priors=TARGET, sparse=dict(type='mmdfkd.PatchDropping', at=(0.3,), share=0.5)
    ),
    rebirth=dict(
        INVERTED, priors=TARGET, images=6, sparse=dict(type='mmdfkd.PatchRebirth', images=2)
    ),
    adversary=dict(
        type='mmdfkd.GeneratorSource',
        generator=GENERATOR,
        batch=2,
        first=2,
        priors=[dict(type='mmdfkd.DivergencePrior')],
    ),
    refined_contrastive=dict(
        type='mmdfkd.RefinedSource', source=POOLED, batch=2, steps=2, priors=CONTRASTIVE
    ),
    refined_remembers=dict(
        type='mmdfkd.RefinedSource',
        source=POOLED,
        batch=2,
        steps=1,
        # Without batch norms the second one is left out.
        priors=[
            dict(type='mmdfkd.BoundaryPreservingPrior'),
            dict(type='mmdfkd.BatchNormPrior', momentum=0.5),
        ],
    ),
    inverted_contrastive=dict(INVERTED, priors=CONTRASTIVE, every=2, batch=2),
    dropping_contrastive=dict(
        INVERTED,
        priors=CONTRASTIVE,
        sparse=dict(type='mmdfkd.PatchDropping', at=(0.3,), share=0.5),
    ),
    inverted_box=dict(INVERTED, priors=[dict(type='mmdfkd.SubBoxPrior', most=1)]),
    inverted_adversary=dict(INVERTED, priors=[*TARGET, *ADVERSARIES, ATTENTION], every=2, batch=2),
    inverted_auto=dict(INVERTED, priors='auto', every=3),
    generated_contrastive=dict(
        type='mmdfkd.GeneratorSource',
        generator=GENERATOR,
        batch=2,
        steps=2,
        first=1,
        priors=CONTRASTIVE,
    ),
    generated_attention=dict(
        type='mmdfkd.GeneratorSource', generator=GENERATOR, batch=2, first=2, priors=[ATTENTION]
    ),
    generated_adversaries=dict(
        type='mmdfkd.GeneratorSource',
        generator=GENERATOR,
        batch=2,
        first=2,
        priors=[*ADVERSARIES, ATTENTION],
    ),
    replayed=dict(
        type='mmdfkd.ReplaySource',
        source=POOLED,
        prefill=5,
        every=2,
        batch=3,
        labels='teacher',
        answers=True,
        views=2,
        bank=dict(policy='disagreement'),
    ),
    kept=dict(type='mmdfkd.ReplaySource', source=POOLED, prefill=5, every=0, answers=True),
    plain_bank=dict(type='mmdfkd.ReplaySource', source=POOLED, every=3, batch=2, prefill=0),
    mixture=dict(type='mmdfkd.MixtureSource', sources=[POOLED, dict(INVERTED, priors=TARGET)]),
)


@pytest.fixture(scope='module')
def networks():
    """A teacher and a student."""
    model = toy.classifier_model()
    normalizer = Normalizer.from_config(Config(toy.whole(model, 'mmpretrain')))
    return [build_adapter(toy.build(model, seed, 'mmpretrain'), normalizer) for seed in (0, 1)]


@pytest.mark.parametrize('name', SOURCES)
def test_passes_are_those_counted(networks, name, tmp_path):
    teacher, student = networks
    source = MODELS.build(SOURCES[name])
    source.folder = tmp_path
    expected = teacher_passes(source, teacher.net, SIZE)
    steps = 5
    with counted(teacher.net, SIZE) as count:
        source.prepare(teacher, seed=1, image_size=SIZE, device='cpu')
        source.fill(teacher)
        before = count.work
        for iteration in range(steps):
            source.refresh(teacher, student, iteration)
    assert before == pytest.approx(expected.before)
    assert count.work == pytest.approx(expected.of(steps, 0))


def test_boxes_count_by_their_mean(networks, monkeypatch):
    """With the number of boxes that these images happen to have it is exact."""
    teacher, student = networks
    numbers = [len(sub_boxes(stream('sub-boxes', 1, n), 4)) for n in range(2000)]
    assert SubBoxPrior(most=4).extra_passes == pytest.approx(sum(numbers) / 2000, rel=0.02)
    cfg = dict(INVERTED, priors=[dict(type='mmdfkd.SubBoxPrior', most=4)], augment=None)
    monkeypatch.setattr(SubBoxPrior, 'extra_passes', sum(numbers[:4]) / 4)
    source = MODELS.build(cfg)
    with counted(teacher.net, SIZE) as count:
        source.prepare(teacher, seed=1, image_size=SIZE, device='cpu')
        source.fill(teacher)
    assert count.work == pytest.approx(teacher_passes(source, teacher.net, SIZE).before)


def test_a_comparison_asks_at_most_so_many(networks):
    teacher, student = networks
    bank = dict(policy='disagreement')
    source = MODELS.build(dict(SOURCES['plain_bank'], bank=bank, measure=4, measure_every=2))
    expected = teacher_passes(source, teacher.net, SIZE)
    assert expected.rounds == ((0, 3, 0), (0, 2, 4))
    with counted(teacher.net, SIZE) as count:
        source.prepare(teacher, seed=1, image_size=SIZE, device='cpu')
        before = count.work
        source.refresh(teacher, student, 0)
    assert 0 < count.work - before <= 4


def test_a_folders_images_are_looked_at_once(networks, tmp_path):
    teacher, _ = networks
    rng = np.random.default_rng(0)
    for number in range(3):
        cv2.imwrite(str(tmp_path / f'{number}.png'), rng.integers(256, size=(32, 32, 3)))
    source = MODELS.build(dict(type='mmdfkd.FolderSource', root=str(tmp_path)))
    expected = teacher_passes(source, teacher.net, SIZE)
    with counted(teacher.net, SIZE) as count:
        source.prepare(teacher, seed=1, image_size=SIZE, device='cpu')
    assert count.work == expected.of(5, 0) == 3


def test_most_steps_within_a_budget():
    """Ten before, 4 a step, and rounds of 5 before steps 1, 4, 7, ..."""
    passes = TeacherPasses(4, ((1, 3, 5),)) + TeacherPasses(6)
    assert [passes.of(n, 4) for n in (0, 1, 2, 4, 5)] == [10, 14, 23, 31, 40]
    assert passes.steps_within(39, 4) == 4
    assert passes.steps_within(40, 4) == 5
    with pytest.raises(ValueError, match='leaves no training step'):
        passes.steps_within(13, 4)


def test_an_unknown_source_is_named():
    class Own(SyntheticSource):
        def draw(self, items):
            raise NotImplementedError

    with pytest.raises(TypeError, match='passes of Own'):
        teacher_passes(Own(), None, SIZE)
