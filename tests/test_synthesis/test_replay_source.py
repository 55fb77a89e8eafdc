"""A replay bank around other sources: what it keeps, when, and what it prefers."""

import copy

import numpy as np
import pytest
import torch
from synthesis_nets import classifier, detector

from mmdfkd.adapters import Targets
from mmdfkd.losses.kl import kl_divergence
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import ReplaySource

ITEMS = [dict(g=g) for g in range(24)]
POOL = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.NoiseRenderer'),
    pool_size=16,
    balance=False,
    augment=None,
    num_workers=0,
)


def replay(**kwargs) -> ReplaySource:
    defaults = dict(
        source=POOL, prefill=10, every=2, batch=4, share=0.5, bank=dict(capacity=18), augment=None
    )
    return MODELS.build(dict(type='mmdfkd.ReplaySource', **{**defaults, **kwargs}))


def prepared(teacher, folder=None, size=16, fill=True, **kwargs) -> ReplaySource:
    source = replay(**kwargs)
    source.folder = folder
    source.prepare(teacher, seed=1, image_size=(size, size), device='cpu')
    if fill:
        source.fill(teacher)
    return source


@pytest.fixture(scope='module')
def teacher():
    return classifier(0)


@pytest.fixture(scope='module')
def student():
    return classifier(1)


def test_keeps_images_before_and_during_the_run(teacher, student):
    source = prepared(teacher)
    assert len(source.bank) == 10 and int(source.made) == 10
    assert source.refresh(teacher, student, 1) == {}
    assert source.refresh(teacher, student, 2) == {'replay/images': 14.0}
    assert source.bank.made_at(source.bank.ids).tolist() == [0] * 10 + [2] * 4
    # They are the inner source's, of indices that no step draws.
    kept = source.bank.take(source.bank.ids)[0]
    pool = source.source.pool.float() / 255
    assert all((pool == image).flatten(1).all(1).any() for image in kept)
    for step in (4, 6, 8):
        source.refresh(teacher, student, step)
    assert len(source.bank) <= 18 and source.bank.ids.min() > 0, 'the oldest retire'


def test_share_of_the_draws(teacher):
    source = prepared(teacher, share=0.3)
    items = [dict(g=g) for g in range(600)]
    chosen = source._chosen(items)
    assert 0.24 < len(chosen) / 600 < 0.36
    images, targets = source.draw(ITEMS)
    assert targets.labels is None
    fresh = source.source.draw(ITEMS)[0]
    mine = source._chosen(ITEMS)
    kept = source.bank.take(np.array(list(mine.values())))[0]
    assert torch.equal(images[list(mine)], kept)
    rest = [i for i in range(24) if i not in mine]
    assert mine and rest and torch.equal(images[rest], fresh[rest])
    assert torch.equal(source.draw(ITEMS[5:9])[0], images[5:9])
    assert not prepared(teacher, fill=False)._chosen(ITEMS), 'an empty bank gives nothing'


def test_resumes_from_its_files(teacher, student, tmp_path):
    through = prepared(teacher, tmp_path)
    for step in range(3):
        through.refresh(teacher, student, step)
    state = copy.deepcopy(through.state_dict())
    for step in range(3, 6):
        through.refresh(teacher, student, step)
    for early in (True, False):
        again = replay()
        again.folder = tmp_path
        if early:
            again.load_state_dict(state)
        again.prepare(teacher, seed=1, image_size=(16, 16), device='cpu')
        if not early:
            again.load_state_dict(state)
        for step in range(3, 6):
            again.refresh(teacher, student, step)
        assert again.bank.index() == through.bank.index()
        assert torch.equal(again.draw(ITEMS)[0], through.draw(ITEMS)[0])


@pytest.mark.parametrize('answers', [False, True])
def test_prefers_what_the_networks_disagree_on(teacher, student, answers, monkeypatch):
    source = prepared(
        teacher,
        answers=answers,
        bank=dict(capacity=18, policy='disagreement', half_life=10.0),
        measure=10,
        measure_every=3,
    )
    passes = []
    encode = teacher.encode
    monkeypatch.setattr(teacher, 'encode', lambda *a, **k: passes.append(1) or encode(*a, **k))
    logs = source.refresh(teacher, student, 3)
    assert len(passes) == (not answers), 'kept answers spare the teacher'
    monkeypatch.undo()
    ids = source.bank.ids
    values = source.bank.disagreement(ids)
    assert np.isfinite(values).all()
    images = source.bank.take(ids)[0]
    teacher.net.eval(), student.net.eval()
    with torch.no_grad():
        mine, theirs = (n.answer(n.encode(images), None).logits for n in (student, teacher))
    want = kl_divergence(mine, theirs, reduction='none')
    # Kept answers are of half precision.
    np.testing.assert_allclose(values, want, rtol=0.02, atol=5e-3)
    assert logs['replay/disagreement'] == pytest.approx(float(want.mean()), rel=0.02)
    assert 'replay/disagreement' not in source.refresh(teacher, student, 4)
    # The new images of step 4 are unknown, and drawn like the most different.
    weights = source.bank.weights(4)
    assert np.isnan(source.bank.disagreement(source.bank.ids)[-4:]).all()
    assert weights[-1] == weights.max()
    old = weights[:10] / weights[:10].sum()
    np.testing.assert_allclose(old, values / values.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(
            type='mmdfkd.GeneratorSource',
            generator=dict(type='mmdfkd.ConvGenerator', noise_dims=4, channels=(8, 8)),
        ),
        dict(type='mmdfkd.PixelInversionSource', source=POOL, images=2),
    ],
)
def test_disagreement_is_refused_where_nobody_measures_it(teacher, cfg):
    """It would silently draw by age."""
    source = MODELS.build(dict(cfg, bank=dict(policy='disagreement')))
    with pytest.raises(ValueError, match=f'{type(source).__name__}: bank=.*mmdfkd.ReplaySource'):
        source.prepare(teacher, seed=0, image_size=(16, 16), device='cpu')


def test_keeps_the_few_largest_probabilities(teacher):
    source = prepared(teacher, answers=True, bank=dict(capacity=18, topk=2))
    images, _, answers = source.bank.take(source.bank.ids)
    with torch.no_grad():
        teacher.net.eval()
        p = teacher.answer(teacher.encode(images), None).logits.softmax(1)
    kept = answers['logits'].exp()
    values, places = p.topk(2, 1)
    torch.testing.assert_close(kept.gather(1, places), values, atol=2e-3, rtol=0)
    torch.testing.assert_close(kept.sum(1), torch.ones(10))


def test_labels_are_the_teachers_or_the_sources(teacher):
    source = prepared(
        teacher, labels='teacher', share=1.0, bank=dict(capacity=18, balance_classes=True)
    )
    images, targets = source.draw(ITEMS)
    with torch.no_grad():
        teacher.net.eval()
        seen = teacher.answer(teacher.encode(images), None).logits.argmax(1)
    assert torch.equal(targets.labels, seen)
    weights = source.bank.weights()
    labels = source.bank.take(source.bank.ids)[1].labels
    shares = np.bincount(labels, weights)
    np.testing.assert_allclose(shares[shares > 0], 1 / (shares > 0).sum())
    generator = dict(
        type='mmdfkd.GeneratorSource',
        generator=dict(
            type='mmdfkd.ConvGenerator', noise_dims=8, channels=(8, 8), base=4, label_dims=5
        ),
        codes='onehot',
    )
    source = prepared(teacher, source=generator, labels='source')
    images, targets = source.draw(ITEMS)
    assert targets.labels is not None and targets.labels.max() < 5
    assert images.shape == (24, 3, 16, 16)


def test_compares_detectors_at_the_teachers_proposals():
    teacher, student = detector(0), detector(1)
    source = prepared(
        teacher,
        size=64,
        prefill=3,
        bank=dict(capacity=6, policy='disagreement'),
        every=0,
        measure_every=1,
    )
    logs = source.refresh(teacher, student, 1)
    assert logs['replay/disagreement'] > 0
    assert np.isfinite(source.bank.disagreement(source.bank.ids)).all()
    with pytest.raises(ValueError, match='of classifiers'):
        prepared(teacher, size=64, answers=True)


def test_boxes_of_the_source_are_drawn_with_their_pixels():
    """Those of a finished set, kept with the images and augmented anew in every draw."""
    plain = dict(type='mmdfkd.LightAugment', contrast=0, brightness=0)
    inner = dict(type='mmdfkd.LayoutInversionSource', source=POOL, share=1.0, augment=None)
    settings = dict(labels='source', prefill=0, every=1, batch=4, share=1.0, augment=plain)
    source = prepared(detector(0), size=64, fill=False, source=inner, **settings)
    painted = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    painted[..., 24:36, 26:44] = 255
    shown = Targets(boxes=[torch.tensor([[26.0, 24, 44, 36]])], box_labels=[torch.tensor([1])])
    source.source.bank.append(painted, shown, iteration=0)
    source._keep(4, None, 0)
    images, targets = source.draw(ITEMS)
    assert len({tuple(own[0].tolist()) for own in targets.boxes}) == len(ITEMS)
    for image, own in zip(images, targets.boxes, strict=True):
        rows, columns = (image[0].amax(axis).gt(0.5).nonzero().flatten() for axis in (1, 0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        torch.testing.assert_close(own[0], torch.stack(found).float(), atol=1.0, rtol=0)
    # Refined images in their place have other layouts, or none.
    refined = MODELS.build(dict(type='mmdfkd.RefinedSource', source=inner, share=0.5))
    refined.source = source
    assert refined.draw(ITEMS)[1].boxes is not None
    refined._keep(torch.full((4, 3, 64, 64), 9, dtype=torch.uint8), torch.zeros(4))
    assert refined.draw(ITEMS)[1].boxes is None


def test_two_processes_keep_their_parts(teacher, monkeypatch):
    from mmdfkd.synthesis.sources import banked
    from mmdfkd.synthesis.sources import replay as module

    alone = prepared(teacher)
    want = alone.bank.take(alone.bank.ids)[0]
    for rank in (0, 1):
        for place in (banked, module):
            monkeypatch.setattr(place, 'get_dist_info', lambda rank=rank: (rank, 2))
        part = prepared(teacher, batch=10)
        assert part.bank.ids.tolist() == list(range(rank, 10, 2))
        assert torch.equal(part.bank.take(part.bank.ids)[0], want[rank::2])


def test_bad_arguments(teacher):
    for kwargs, name in (
        (dict(batch=0), 'batch'),
        (dict(measure_every=0), 'measure_every'),
        (dict(prefill=0, every=0), 'keeps no image'),
        (dict(share=1.5), 'share'),
        (dict(labels='mine'), 'labels'),
    ):
        with pytest.raises(ValueError, match=f'ReplaySource: {name}'):
            replay(**kwargs)
    with pytest.raises(TypeError, match='PooledSource'):
        replay(source=dict(type='mmdfkd.RenderedSource'))
    with pytest.raises(ValueError, match='lower capacity to 5,'):
        prepared(teacher, bank=dict(capacity=10, max_bytes=5 * 3 * 256))


@pytest.mark.parametrize('views', [0, 3])
@pytest.mark.parametrize('topk', [None, 2])
def test_answers_are_those_to_the_images_drawn(teacher, views, topk):
    augment = dict(type='mmdfkd.LightAugment') if views else None
    bank = dict(capacity=18, topk=topk, full_precision=('logits',))
    source = prepared(teacher, answers=True, views=views, augment=augment, bank=bank)
    images, targets = source.draw(ITEMS)
    chosen = list(source._chosen(ITEMS))
    known = ~targets.answers.isnan().any(1)
    assert known.nonzero().flatten().tolist() == sorted(chosen)
    with torch.no_grad():
        teacher.net.eval()
        logits = teacher.answer(teacher.encode(images[known]), None).logits
    if topk is None:
        torch.testing.assert_close(targets.answers[known], logits)
        again = source.draw(ITEMS[3:9])
        assert torch.equal(again[0], images[3:9])
        assert torch.equal(again[1].answers.nan_to_num(), targets.answers[3:9].nan_to_num())
    else:
        values, places = logits.softmax(1).topk(2)
        kept = targets.answers[known].exp().gather(1, places)
        torch.testing.assert_close(kept, values, atol=2e-3, rtol=0)
    # Views of one image differ: its answers are not all alike.
    ids = source.bank.ids
    answers = source.bank.take(ids)[2]['logits']
    assert answers.shape == ((10, 3, 5) if views else (10, 5))
    assert not views or (answers[:, 0] != answers[:, 1]).any(1).all()


def test_no_answers_where_the_images_are_others(teacher):
    """Augmented anew, refined, or of the inner source."""
    light = dict(type='mmdfkd.LightAugment')
    source = prepared(teacher, answers=True, augment=light)
    assert not source.gives_answers and source.draw(ITEMS)[1].answers is None
    inner = dict(type='mmdfkd.ReplaySource', source=POOL, prefill=10, answers=True, augment=None)
    refined = MODELS.build(dict(type='mmdfkd.RefinedSource', source=inner, share=0.5))
    refined.prepare(teacher, seed=1, image_size=(16, 16), device='cpu')
    refined.fill(teacher)
    before, known = refined.draw(ITEMS)
    refined._keep(torch.full((4, 3, 16, 16), 9, dtype=torch.uint8), torch.zeros(4))
    after, left = refined.draw(ITEMS)
    changed = (before != after).flatten(1).any(1)
    was, still = (~t.answers.isnan().any(1) for t in (known, left))
    assert changed.any() and torch.equal(still, was & ~changed) and still.any()
    with pytest.raises(ValueError, match='views=2 are augmentations'):
        replay(views=2, augment=light)
    with pytest.raises(ValueError, match='views=2 are augmentations'):
        replay(views=2, answers=True, augment=None)


def test_comparisons_by_kept_views(teacher, student, monkeypatch):
    source = prepared(
        teacher,
        answers=True,
        views=2,
        augment=dict(type='mmdfkd.LightAugment'),
        bank=dict(capacity=18, policy='disagreement'),
        measure_every=1,
        every=0,
    )
    passes = []
    monkeypatch.setattr(teacher, 'encode', lambda *a, **k: passes.append(1))
    assert source.refresh(teacher, student, 1)['replay/disagreement'] > 0 and not passes
