"""Pixel inversion: images in which the teacher sees a class, dense or on some of the patches."""

import copy

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from prior_nets import teacher as prior_teacher
from synthesis_nets import classifier, detector
from torch.nn import functional as F

from mmdfkd.adapters import Targets
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import frozen
from mmdfkd.synthesis.priors import SubBoxPrior, SynthesisContext
from mmdfkd.synthesis.priors.class_prior import soft_target
from mmdfkd.synthesis.priors.sub_boxes import crops, sub_boxes
from mmdfkd.synthesis.sources.pixel_inversion import PixelInversionSource, half_size

POOL = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.ProceduralRenderer'),
    pool_size=12,
    num_workers=0,
)
TARGET = dict(type='mmdfkd.TargetPrior')
ITEMS = [dict(g=g) for g in range(10)]
MEAN = 127 / 255


def inversion(**kwargs) -> PixelInversionSource:
    settings = dict(source=POOL, images=5, batch=5, steps=9, augment=None)
    return MODELS.build(dict(type='mmdfkd.PixelInversionSource', **{**settings, **kwargs}))


def noisy(**kwargs) -> PixelInversionSource:
    """From noise, without a pool, which costs most of a small test."""
    return inversion(source=None, share=1.0, **kwargs)


def prepare(source, teacher, seed=0, size=16, folder=None):
    source.folder = folder
    source.prepare(teacher, seed=seed, image_size=(size, size), device='cpu')
    return source


def images_of(source):
    images, targets, _ = source.bank.take(source.bank.ids)
    return images, targets


@pytest.fixture(scope='module')
def teacher():
    return classifier(0)


@pytest.fixture(scope='module')
def student():
    return classifier(1)


@pytest.fixture(scope='module')
def made(teacher, student):
    source = prepare(noisy(), teacher)
    return source, source.refresh(teacher, student, 0)


def test_the_teacher_comes_to_see_the_class_and_the_networks_stay(teacher, student):
    networks = copy.deepcopy([teacher, student])
    networks[1].net.train()
    first = next(networks[1].net.parameters()).requires_grad_(False)
    last = list(networks[1].net.parameters())[-1]
    last.grad = torch.ones_like(last)
    states = [{k: v.clone() for k, v in a.net.state_dict().items()} for a in networks]
    modes = [m.training for a in networks for m in a.net.modules()]
    priors = [TARGET, dict(type='mmdfkd.DivergencePrior', weight=0.1)]
    source = prepare(inversion(steps=20, priors=priors), networks[0])
    torch.manual_seed(0)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    logs = source.refresh(*networks, 0)
    assert logs['pixels/after'] < 0.5 * logs['pixels/before']
    assert logs['pixels/recognised'] >= 0.8 and np.isfinite(list(logs.values())).all()
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(np_state, np.random.get_state()[1])
    assert modes == [m.training for a in networks for m in a.net.modules()]
    assert not first.requires_grad and last.requires_grad
    assert torch.equal(last.grad, torch.ones_like(last))
    assert all(p.grad is None for a in networks for p in a.net.parameters() if p is not last)
    for network, before in zip(networks, states, strict=True):
        assert all(torch.equal(v, before[k]) for k, v in network.net.state_dict().items())


def test_classes_are_balanced_and_draws_are_functions_of_the_index(made):
    source, logs = made
    images, targets = images_of(source)
    assert images.shape == (5, 3, 16, 16) and sorted(targets.labels.tolist()) == [0, 1, 2, 3, 4]
    assert int(source.made) == 5
    state = torch.get_rng_state()
    drawn, shown = source.draw(ITEMS)
    assert torch.equal(state, torch.get_rng_state())
    assert drawn.min() >= 0 and drawn.max() <= 1
    # All are the bank's: each with the class that it was made for.
    for image, label in zip(drawn, shown.labels, strict=True):
        (made,) = [i for i in range(5) if torch.equal(images[i], image)]
        assert targets.labels[made] == label
    assert torch.equal(drawn[3:6], source.draw(ITEMS[3:6])[0])
    assert all((images == image).flatten(1).all(1).any() for image in drawn)
    # A third of the steps at half the resolution: 5 of 17 tokens; six checks at full; the end.
    assert logs['pixels/passes'] == pytest.approx((3 * 5 + 6 * 17 + 6 * 17 + 17) / 17, rel=0.01)


def test_images_follow_from_seed_and_number(made, teacher, student):
    """Whatever else is in the batch, up to how networks round."""
    again, parts, other = noisy(), noisy(batch=2), noisy()
    for source, seed in ((again, 0), (parts, 0), (other, 1)):
        prepare(source, teacher, seed).refresh(teacher, student, 0)
    wanted = images_of(made[0])[0]
    assert torch.equal(images_of(again)[0], wanted)
    assert (images_of(parts)[0] - wanted).abs().mean() < 0.5 / 255
    assert (images_of(other)[0] - wanted).abs().mean() > 5 / 255


def test_processes_share_the_work(made, teacher, student, monkeypatch):
    """As many images in each, rounded up; those of one process, between them."""
    from mmdfkd.synthesis.sources import banked, pixel_inversion

    found = {}
    for rank in (0, 1):
        for module in (banked, pixel_inversion):
            monkeypatch.setattr(module, 'get_dist_info', lambda rank=rank: (rank, 2))
        source = prepare(noisy(), teacher)
        source.refresh(teacher, student, 0)
        assert int(source.made) == 6 and len(source.bank) == 3
        found.update(zip(range(rank, 6, 2), images_of(source)[0], strict=True))
    together = torch.stack([found[number] for number in range(5)])
    assert (together - images_of(made[0])[0]).abs().mean() < 0.5 / 255


def test_a_set_in_which_nothing_is_recognised_is_told(teacher, student, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    priors = [dict(type='mmdfkd.TargetPrior', weight=-1.0)]
    try:
        prepare(noisy(priors=priors, steps=12), teacher).refresh(teacher, student, 0)
    finally:
        logger.removeHandler(caplog.handler)
    assert 'none of 5 images its class after 12 steps' in caplog.text


def test_the_best_image_is_a_copy(teacher, student):
    """Steps that overshoot: the best is the start, and an alias would show the last one."""
    source = noisy(
        steps=4, lr=0.5, half=0, views=None, priors=[dict(type='mmdfkd.TotalVariationPrior')]
    )
    prepare(source, teacher)
    start = torch.full((3, 3, 16, 16), 0.5)
    start[0, :, 8] += 0.1
    kept = start.clone()
    images, _, logs = source.invert(start, torch.arange(3), range(3), teacher, student)
    assert torch.equal(start, kept), "the start images are the caller's"
    assert (images[1:] == 128).all()
    assert logs['pixels/after'] < logs['pixels/total_variation']


@pytest.mark.parametrize('early', [True, False])
def test_killed_and_resumed_is_going_through(early, teacher, student, tmp_path, monkeypatch):
    """Without a step for what is there already; also with a term that remembers images."""
    settings = dict(
        images=3,
        every=2,
        batch=2,
        steps=3,
        start='bank',
        priors=[TARGET, dict(type='mmdfkd.ContrastivePrior', weight=0.1)],
    )
    through = prepare(noisy(**settings), teacher, folder=tmp_path)
    through.fill(teacher)
    through.refresh(teacher, student, 1)
    saved = copy.deepcopy(through.state_dict())
    resumed = noisy(**settings)
    if early:
        resumed.load_state_dict(saved)
    prepare(resumed, teacher, folder=tmp_path)
    if not early:
        resumed.load_state_dict(saved)
    with monkeypatch.context() as patch:
        patch.setattr(resumed, 'invert', None)
        assert resumed.refresh(teacher, student, 1) == {}
    for source in (through, resumed):
        assert source.refresh(teacher, student, 2)['pixels/after'] < 100
    assert int(resumed.made) == len(resumed.bank) == 5
    assert torch.equal(resumed.draw(ITEMS)[0], through.draw(ITEMS)[0])
    first, second = through.state_dict(), resumed.state_dict()
    assert first.pop('_extra_state') == second.pop('_extra_state')
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_detector_starts_from_proposed_layouts():
    """At half the resolution; boxes grow with the image."""
    teacher, student = detector(0), detector(1)
    source = prepare(noisy(images=2, batch=2, steps=4, half=0.5, priors=[TARGET]), teacher, size=64)
    assert source.half_size == (32, 32)
    logs = source.refresh(teacher, student, 0)
    assert 'pixels/recognised' not in logs and np.isfinite(logs['pixels/after'])
    images, targets = images_of(source)
    assert images.shape == (2, 3, 64, 64) and len(targets.boxes) == 2
    assert targets.labels is None
    assert all((b >= 0).all() and (b <= 64).all() and len(b) for b in targets.boxes)
    assert max(float(b[:, 2:].max()) for b in targets.boxes) > 32
    with pytest.raises(ValueError, match='sparse does not suit'):
        prepare(noisy(sparse=dict(type='mmdfkd.PatchDropping')), teacher, size=64)


class TestStarts:
    def test_from_the_source(self, teacher):
        source = prepare(inversion(), teacher)
        labels = np.arange(5)
        items = [dict(g=(1 << 42) + n) for n in range(5)]
        found = source.start_images(range(5), labels)
        assert torch.equal(found, source.source.draw_for(items, labels))
        # Draws before there is a bank.
        assert torch.equal(source.draw(ITEMS)[0], source.source.draw(ITEMS)[0])

    def test_from_the_bank(self, made, teacher):
        """An image of the class, noise while there is none."""
        source = prepare(noisy(start='bank'), teacher)
        source.load_state_dict(made[0].state_dict())
        images, targets = images_of(source)
        drop = int(targets.labels[0])
        source.bank.restore(source.bank.index())
        found = source.start_images(range(5, 10), np.arange(5))
        order = targets.labels.argsort()
        assert torch.equal(found, images[order])
        empty = prepare(noisy(start='bank'), teacher)
        noise = empty.start_images([7], np.array([drop]))
        assert torch.equal(noise, prepare(noisy(), teacher).start_images([7], np.array([1])))
        assert 0.1 < noise.std() < 0.2

    def test_a_source_from_the_dataset(self):
        with pytest.raises(ValueError, match='cannot come from the dataset'):
            inversion(source=dict(type='mmdfkd.RenderedSource'))


class TestSparse:
    def run(self, teacher, student, **kwargs):
        source = prepare(noisy(half=0, views=None, priors=[TARGET], **kwargs), teacher)
        return source, source.refresh(teacher, student, 0)

    def grey(self, images):
        """Which patches have the mean colour: ``[N, 16]``."""
        cells = images.unfold(2, 4, 4).unfold(3, 4, 4)
        return ((cells - MEAN).abs() < 1 / 255).all(5).all(4).all(1).flatten(1)

    def test_dropped_patches_stay_as_they_were(self, teacher, student):
        """Also behind an optimiser whose momentum would move them on."""
        for optimizer in (None, dict(type='Adam', lr=0.05)):
            _, dense = self.run(teacher, student, optimizer=optimizer)
            source, logs = self.run(
                teacher,
                student,
                optimizer=optimizer,
                sparse=dict(type='mmdfkd.PatchDropping', at=(0.3, 0.6), share=0.5, dropped='mean'),
            )
            assert self.grey(images_of(source)[0]).sum(1).tolist() == [12] * 5
            assert logs['pixels/after'] < logs['pixels/before']
            assert logs['pixels/passes'] < 0.7 * dense['pixels/passes']

    def test_pixels_of_dropped_patches_are_the_start(self, teacher, student):
        sparse = dict(type='mmdfkd.PatchDropping', at=(0.01,), share=0.5, importance='gradient')
        source = prepare(
            noisy(half=0, views=None, priors=[TARGET], sparse=sparse, lr=0.1, steps=8), teacher
        )
        start = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([1, 2])
        ends = []
        for steps in (2, 8):
            source.steps, source.checks = steps, 1
            with frozen(teacher.net, student.net):
                ends.append(source.invert(start, labels, range(2), teacher, student)[0].int())
        # What left after the first step is the same in both, to the rest of the first move.
        same = ((ends[0] - ends[1]).abs().sum(1) == 0).unfold(1, 4, 4).unfold(2, 4, 4)
        assert (same.all(4).all(3).flatten(1).sum(1) >= 8).all()

    def test_one_trajectory_gives_several_images_of_disjoint_patches(self, teacher, student):
        source, logs = self.run(
            teacher, student, images=8, batch=2, sparse=dict(type='mmdfkd.PatchRebirth', images=4)
        )
        images, targets = images_of(source)
        assert len(images) == int(source.made) == 8
        own = ~self.grey(images)
        for first in (0, 4):
            # In the order of the events: both trajectories' first images, then their second ones.
            for b in range(2):
                assert own[first + b : first + 4 : 2].sum() <= 8
        segments = [own[i : i + 8] for i in range(0, 8, 8)]
        assert all(part.sum() == 2 * 16 for part in segments)
        assert np.bincount(targets.labels.tolist(), minlength=5).max() == 4
        # Half of the patches and a quarter of one each: 2.5 of 4 dense images, and the end's pass.
        assert logs['pixels/passes'] < 9

    def test_a_whole_number_of_trajectories(self, teacher):
        source = prepare(noisy(images=5, sparse=dict(type='mmdfkd.PatchRebirth')), teacher)
        source.fill(teacher)
        assert len(source.bank) == int(source.made) == 8

    def test_who_cannot(self):
        for kind in ('resnet', 'swin'):
            with pytest.raises(ValueError, match='does not take its patches as a list'):
                prepare(noisy(sparse=dict(type='mmdfkd.PatchDropping')), prior_teacher(kind))


class TestSubBoxes:
    def test_against_a_reference(self):
        """Whole and boxes, each cropped on its own, in a loop."""
        teacher = prior_teacher('vit')
        images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        ctx = SynthesisContext(images, Targets(labels=torch.tensor([4, 0, 2])), teacher, seed=7)
        with torch.no_grad():
            found = SubBoxPrior(most=3)(ctx)
        for b, label in enumerate([4, 0, 2]):
            boxes = sub_boxes(ctx.rng('sub-boxes', b), 3)
            rng = ctx.rng('sub-box-classes', b)
            shown = [label, *rng.permutation(np.delete(np.arange(5), label))]
            targets = [soft_target(rng, int(c), 5, (0.5, 0.95)) for c in shown[: len(boxes)]]
            assert [int(t.argmax()) for t in targets] == [int(c) for c in shown[: len(boxes)]]
            views = [images[b : b + 1]]
            for x1, y1, x2, y2 in boxes:
                theta = torch.tensor([[[x2 - x1, 0, x1 + x2 - 1], [0, y2 - y1, y1 + y2 - 1]]])
                grid = F.affine_grid(theta.float(), [1, 3, 16, 16], align_corners=False)
                views.append(
                    F.grid_sample(
                        images[b : b + 1], grid, padding_mode='border', align_corners=False
                    )
                )
            values = []
            for view, target in zip(views, [np.mean(targets, 0), *targets], strict=True):
                with torch.no_grad():
                    logits = teacher.answer(teacher.encode(view)).logits[0].double().numpy()
                log_p = logits - np.log(np.exp(logits).sum())
                values.append((target * (np.log(target) - log_p)).sum())
            assert float(found[b]) == pytest.approx(np.mean(values), abs=1e-4)

    def test_boxes_are_disjoint_and_their_pixels_alone_count(self):
        for seed in range(20):
            boxes = sub_boxes(np.random.default_rng(seed), 4)
            cover = torch.zeros(100, 100)
            for x1, y1, x2, y2 in boxes:
                cover[round(100 * y1) : round(100 * y2), round(100 * x1) : round(100 * x2)] += 1
            assert 1 <= len(boxes) <= 4 and cover.max() == 1
        images = torch.rand(1, 3, 16, 16).requires_grad_()
        crops(images, [(0.5, 0.0, 1.0, 0.5)], torch.tensor([0])).sum().backward()
        moved = images.grad.abs().sum((0, 1)) > 0
        # Bilinear: to a pixel.
        assert moved[:8, 8:].all() and not moved[9:].any() and not moved[:, :7].any()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match='most'):
            SubBoxPrior(most=5)
        with pytest.raises(ValueError, match='sure'):
            SubBoxPrior(sure=(0.5, 1.0))
        assert 'names no class' in SubBoxPrior().unsuited(detector(0))


def test_soft_targets_and_bfloat16(teacher, student):
    priors = [dict(type='mmdfkd.ClassPrior', mode='soft'), dict(type='mmdfkd.SubBoxPrior')]
    source = prepare(noisy(steps=4, amp=True, priors=priors), teacher)
    logs = source.refresh(teacher, student, 0)
    assert np.isfinite(list(logs.values())).all()
    assert logs['pixels/after'] < logs['pixels/before']


def test_half_size():
    assert half_size((32, 32), (8, 8)) == (16, 16)
    assert half_size((224, 336), (16, 16)) == (112, 160)
    assert half_size((16, 16), (8, 8)) is None, 'two patches are as few as it gets'
    assert half_size((50, 33), None) == (25, 16)


def test_objective_that_is_not_finite(teacher, student):
    source = prepare(noisy(priors=[dict(TARGET, weight=float('nan'))]), teacher)
    with pytest.raises(FloatingPointError, match='nan at step 0: target'):
        source.refresh(teacher, student, 0)


@pytest.mark.parametrize(
    ('wrong', 'match'),
    [
        (dict(batch=0), 'batch'),
        (dict(steps=0), 'steps'),
        (dict(checks=0), 'checks'),
        (dict(images=0), 'makes no image'),
        (dict(half=1.0), 'half'),
        (dict(start='zero'), 'start'),
        (dict(share=1.5), 'share'),
        (dict(source=None), 'without a source'),
        (dict(source=None, share=1.0, start='source'), 'without a source'),
        (dict(optimizer=dict(type='Adam')), 'needs its lr'),
    ],
)
def test_bad_arguments(wrong, match):
    with pytest.raises(ValueError, match=f'PixelInversionSource: .*{match}'):
        inversion(**wrong)


def test_no_prior_suits(teacher):
    with pytest.raises(ValueError, match='none of its priors'):
        prepare(noisy(priors=[dict(type='mmdfkd.BatchNormPrior')]), teacher)
