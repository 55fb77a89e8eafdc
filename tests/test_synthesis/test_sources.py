"""Sources: draws are functions of seed and index, balanced, and leave the networks as they were."""

import copy
import logging

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from synthesis_nets import classifier, detector

from mmdfkd.adapters import ClassifierAdapter, Targets
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import PooledSource, RefinedSource, RenderedSource

PROCEDURAL = dict(type='mmdfkd.ProceduralRenderer')
ITEMS = [dict(g=g) for g in range(8)]


def pooled(**kwargs) -> PooledSource:
    defaults = dict(type='mmdfkd.PooledSource', renderer=PROCEDURAL, pool_size=48, num_workers=0)
    return MODELS.build({**defaults, **kwargs})


def refined(**kwargs) -> RefinedSource:
    source = dict(type='mmdfkd.PooledSource', renderer=PROCEDURAL, pool_size=16, num_workers=0)
    defaults = dict(
        type='mmdfkd.RefinedSource', source=source, every=2, batch=6, steps=6, max_images=10
    )
    return MODELS.build({**defaults, **kwargs})


def prepare(source, teacher, size=16, seed=0):
    source.prepare(teacher, seed=seed, image_size=(size, size), device='cpu')
    return source


class TestRendered:
    def test_gives_the_rendered_pixels(self):
        source = prepare(MODELS.build(dict(type='mmdfkd.RenderedSource')), classifier(0))
        image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
        images, targets = source.draw([dict(g=3, image=image), dict(g=4, image=255 - image)])
        torch.testing.assert_close(images[0], image.float() / 255)
        assert targets == Targets()

    def test_augments_on_demand(self):
        source = prepare(RenderedSource(augment=dict(type='mmdfkd.LightAugment')), classifier(0))
        image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
        first = source.draw([dict(g=3, image=image)])[0]
        assert torch.equal(first, source.draw([dict(g=3, image=image)])[0])
        assert not torch.equal(first, source.draw([dict(g=4, image=image)])[0])

    def test_says_what_is_missing(self):
        with pytest.raises(KeyError, match='renderer'):
            RenderedSource().draw(ITEMS)


class TestDataset:
    """Real images: RGB in [0, 1], and their classes where these are asked for."""

    @staticmethod
    def items():
        image = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
        return [dict(inputs=image, data_samples=DataSample().set_gt_label(c)) for c in (2, 0)]

    def draw(self, items, **settings):
        source = prepare(MODELS.build(dict(type='mmdfkd.DatasetSource', **settings)), classifier(0))
        return source.draw(items)

    def test_labels_on_demand(self):
        images, targets = self.draw(self.items())
        # mmcv loads BGR.
        assert torch.equal(images[1], self.items()[0]['inputs'].flip(0) / 255)
        assert targets == Targets()
        _, targets = self.draw(self.items(), labels=True)
        assert targets.labels.tolist() == [2, 0]

    def test_images_without_one_class(self):
        unlabelled, two = [self.items() for _ in range(2)]
        del unlabelled[1]['data_samples']
        two[0]['data_samples'] = DataSample().set_gt_label([0, 1])
        for items in (unlabelled, two):
            with pytest.raises(ValueError, match='labels=True needs one class with every image'):
                self.draw(items, labels=True)

    def test_sizes_and_orders(self):
        other = dict(inputs=torch.zeros(3, 4, 5, dtype=torch.uint8))
        with pytest.raises(ValueError, match='one size'):
            self.draw([*self.items(), other])
        with pytest.raises(ValueError, match="'bgr' or 'rgb'"):
            MODELS.build(dict(type='mmdfkd.DatasetSource', order='gbr'))


class SkewedTeacher(ClassifierAdapter):
    """A classifier that nearly always sees class 0 and never sees class 4."""

    def class_votes(self, memory):
        votes = super().class_votes(memory)
        # By rank, so that the skew does not hang on the random weights.
        order = votes[:, 1].argsort().argsort().float() / len(votes)
        kind = (order > 0.8).long() + (order > 0.9).long() + (order > 0.95).long()
        return 0.97 * torch.nn.functional.one_hot(kind, 5).float() + 1e-4 * (torch.arange(5) < 4)


class TestPooled:
    def test_draws_are_functions_of_seed_and_index(self):
        teacher = classifier(0)
        source = prepare(pooled(), teacher)
        torch.manual_seed(0)
        state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        images, targets = source.draw(ITEMS)
        assert torch.equal(state, torch.get_rng_state())
        assert np.array_equal(np_state, np.random.get_state()[1])
        assert targets == Targets()
        assert images.shape == (8, 3, 16, 16) and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1 and not images.requires_grad
        # Whatever else is in the batch, whatever was drawn before.
        assert torch.equal(images[5:7], source.draw(ITEMS[5:7])[0])
        again = prepare(pooled(num_workers=2), copy.deepcopy(teacher))
        assert torch.equal(again.pool, source.pool)
        assert torch.equal(images, again.draw(ITEMS)[0])
        assert not torch.equal(images, prepare(pooled(), teacher, seed=1).draw(ITEMS)[0])

    def test_preparing_touches_no_global_generator_and_not_the_teacher(self):
        teacher = classifier(0)
        teacher.net.train()
        torch.manual_seed(0)
        state = torch.get_rng_state()
        before = {k: v.clone() for k, v in teacher.net.state_dict().items()}
        prepare(pooled(num_workers=1), teacher)
        assert torch.equal(state, torch.get_rng_state())
        assert teacher.net.training and all(p.requires_grad for p in teacher.net.parameters())
        assert all(torch.equal(v, before[k]) for k, v in teacher.net.state_dict().items())

    @pytest.mark.parametrize('uniform', [0.0, 0.2])
    def test_skewed_votes_are_drawn_balanced(self, uniform, caplog):
        plain = classifier(0)
        teacher = SkewedTeacher(plain.net, plain.normalizer)
        source = pooled(pool_size=200, batch_size=200, uniform=uniform)
        with caplog.at_level(logging.INFO):
            prepare(source, teacher)
        assert source.covered.tolist() == [0, 1, 2, 3], 'no image shows class 4'
        seen = source.votes.argmax(0)
        assert (seen == 0).mean() > 0.75 and (seen == 3).mean() < 0.06
        drawn = np.bincount([seen[source.pick(g)] for g in range(4000)], minlength=5) / 4000
        share = (1 - uniform) / 4 + uniform * np.bincount(seen, minlength=5) / 200
        assert np.abs(drawn[:4] - share[:4]).max() < 0.05
        # Without balance the skew stays.
        raw = prepare(pooled(pool_size=200, balance=False), teacher)
        assert np.mean([seen[raw.pick(g)] == 0 for g in range(1000)]) > 0.7

    def test_image_for_a_class_follows_its_votes(self):
        source = prepare(pooled(power=2.0), classifier(0))
        weight = source.votes[2].astype(float) ** 2
        weight /= weight.sum()
        quantiles = (np.arange(4000) + 0.5) / 4000
        drawn = np.bincount([source._by_vote(2, u) for u in quantiles], minlength=48) / 4000
        assert np.abs(drawn - weight).max() < 1e-3

    def test_a_teacher_that_sees_nothing_leaves_uniform_draws(self):
        source = prepare(pooled(least_vote=1.1), classifier(0))
        assert not len(source.covered)
        assert len({source.pick(g) for g in range(400)}) == 48
        assert source.draw_for(ITEMS, np.zeros(8, int)).shape == (8, 3, 16, 16)

    @pytest.mark.parametrize(('classes', 'covered'), [(5, 0), (10, 0), (80, 80)])
    def test_weak_classes_of_many_are_covered(self, classes, covered):
        """Votes of four even shares are .05 of eighty classes, and little of ten."""
        source = pooled()
        source._weigh(np.full((48, classes), 0.04))
        assert len(source.covered) == covered

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match='lower pool_size to 42 '):
            prepare(pooled(pool_size=10**6, max_bytes=42 * 3 * 16 * 16), classifier(0))
        with pytest.raises(ValueError, match='pool_size'):
            pooled(pool_size=0)
        with pytest.raises(ValueError, match='uniform'):
            pooled(uniform=1.5)
        with pytest.raises(RuntimeError, match='prepare'):
            pooled(balance=False).draw(ITEMS)

    def test_scores_with_a_detector(self):
        source = prepare(pooled(pool_size=6), detector(0), size=64)
        assert source.votes.shape == (3, 6)
        assert source.draw(ITEMS)[0].shape == (8, 3, 64, 64)


def networks(kind):
    return (kind(0), kind(1))


@pytest.mark.parametrize('kind,size', [(classifier, 16), (detector, 64)])
class TestRefined:
    def test_lowers_its_objective_and_leaves_no_trace(self, kind, size):
        teacher, student = networks(kind)
        student.net.train(), teacher.net.eval()
        frozen_one = next(student.net.parameters()).requires_grad_(False)
        last = list(student.net.parameters())[-1]
        last.grad = torch.ones_like(last)
        states = [{k: v.clone() for k, v in a.net.state_dict().items()} for a in (teacher, student)]
        source = prepare(refined(), teacher, size)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        logs = source.refresh(teacher, student, 0)
        assert torch.equal(before, torch.get_rng_state())
        assert logs['refined/after'] < logs['refined/before']
        assert all(np.isfinite(v) for v in logs.values())
        assert student.net.training and not teacher.net.training
        assert not frozen_one.requires_grad and last.requires_grad
        assert torch.equal(last.grad, torch.ones_like(last))
        rest = [*teacher.net.parameters(), *list(student.net.parameters())[:-1]]
        assert all(p.grad is None for p in rest)
        for adapter, state in zip((teacher, student), states, strict=True):
            assert all(torch.equal(v, state[k]) for k, v in adapter.net.state_dict().items())
        assert len(source.ring) == 6
        assert source.refresh(teacher, student, 1) == {}

    def test_state_round_trip_continues_bit_equal(self, kind, size):
        teacher, student = networks(kind)
        source = prepare(refined(share=0.5), teacher, size)
        for step in range(3):
            source.refresh(teacher, student, step)
        saved = {k: v.clone() for k, v in source.state_dict().items()}
        assert saved['ring'].dtype == torch.uint8
        for step in (3, 4):
            source.refresh(teacher, student, step)
        # Loaded before it is prepared, as well as after.
        for early in (True, False):
            other = refined(share=0.5)
            if early:
                other.load_state_dict(saved)
            prepare(other, teacher, size)
            if not early:
                other.load_state_dict(saved)
            for step in (3, 4):
                other.refresh(teacher, student, step)
            assert torch.equal(other.ring, source.ring)
            assert torch.equal(other.draw(ITEMS)[0], source.draw(ITEMS)[0])


class TestRefinedDetails:
    def test_best_image_is_not_the_one_being_optimised(self):
        """With steps that overshoot, the best is an early image; an alias would return the last."""
        teacher, student = networks(classifier)
        source = prepare(
            refined(lr=0.5, steps=8, priors=[dict(type='mmdfkd.TotalVariationPrior')]), teacher
        )
        start = torch.full((3, 3, 16, 16), 0.5)
        start[0, :, 8] += 1e-3
        kept = start.clone()
        best, logs = source.refine(start, torch.zeros(3, dtype=torch.long), teacher, student)
        assert torch.equal(start, kept), "the start images are the caller's"
        assert logs['refined/total_variation'] > logs['refined/after']
        assert torch.equal(best[1:], start[1:])

    def test_images_do_not_depend_on_their_batch(self):
        teacher, student = networks(classifier)
        teacher.net.eval(), student.net.eval()
        source = prepare(refined(), teacher)
        start, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
        whole = source.refine(start, labels, teacher, student)[0]
        part = source.refine(start[1:3], labels[1:3], teacher, student)[0]
        torch.testing.assert_close(whole[1:3], part, rtol=0, atol=1e-3)

    def test_wanted_classes_are_balanced(self):
        source = prepare(refined(), classifier(0))
        labels = [source._label(serial, 5) for serial in range(50)]
        assert np.bincount(labels).tolist() == [10] * 5
        assert labels[:5] != labels[5:10] or labels[5:10] != labels[10:15]

    def test_ring_keeps_the_newest(self):
        source = refined(max_images=4)
        for first in (0, 3, 6):
            new = torch.arange(first, first + 3, dtype=torch.uint8)
            source._keep(new[:, None, None, None].expand(-1, 3, 2, 2), new + 100)
        assert source.labels.tolist() == [v + 100 for v in source.ring[:, 0, 0, 0].tolist()]
        assert sorted(source.ring[:, 0, 0, 0].tolist()) == [5, 6, 7, 8]
        assert int(source.written) == 9
        new = torch.arange(20, 29, dtype=torch.uint8)
        source._keep(new[:, None, None, None].expand(-1, 3, 2, 2), new)
        assert source.labels.tolist() == source.ring[:, 0, 0, 0].tolist()
        assert sorted(source.ring[:, 0, 0, 0].tolist()) == [25, 26, 27, 28]

    def test_share_of_the_draws(self):
        teacher, student = networks(classifier)
        source = prepare(refined(share=0.3, augment=None), teacher)
        plain = source.draw(ITEMS)[0]
        assert torch.equal(plain, source.source.draw(ITEMS)[0]), 'an empty ring gives nothing'
        source.refresh(teacher, student, 0)
        items = [dict(g=g) for g in range(400)]
        mixed, base = source.draw(items)[0], source.source.draw(items)[0]
        replaced = (mixed != base).flatten(1).any(1)
        assert 0.2 < replaced.float().mean() < 0.4
        ring = source.ring.float() / 255
        assert all((ring == image).flatten(1).all(1).any() for image in mixed[replaced])
        assert torch.equal(mixed[100:107], source.draw(items[100:107])[0])

    def test_every_process_gets_the_whole_batch(self, monkeypatch):
        """Two processes that refine half each keep the ring of one that refines all."""
        from mmdfkd.synthesis.sources import refined as module

        teacher, student = networks(classifier)
        alone = prepare(refined(batch=5), teacher)
        alone.refresh(teacher, student, 2)
        parts = []
        for rank in (0, 1):
            monkeypatch.setattr(module, 'get_dist_info', lambda rank=rank: (rank, 2))
            monkeypatch.setattr(module, 'all_gather', lambda x: parts.append(x) or [x])
            prepare(refined(batch=5), teacher).refresh(teacher, student, 2)
        together = torch.cat(parts)[:5]
        assert (together.int() - alone.ring.int()).abs().max() <= 1

    def test_a_refined_image_has_the_class_that_it_was_refined_for(self):
        teacher, student = networks(classifier)
        inner = dict(
            type='mmdfkd.PixelInversionSource',
            source=dict(
                type='mmdfkd.PooledSource', renderer=PROCEDURAL, pool_size=16, num_workers=0
            ),
            images=4,
            steps=1,
            share=1.0,
            half=0.0,
        )
        source = prepare(refined(source=inner, share=0.5, augment=None), teacher)
        source.fill(teacher)
        for iteration in range(0, 6, 2):
            source.refresh(teacher, student, iteration)
        items = [dict(g=g) for g in range(64)]
        images, targets = source.draw(items)
        plain, inner_targets = source.source.draw(items)
        ring = (images[:, None] == source.ring.float()[None] / 255).flatten(2).all(2)
        replaced = ring.any(1)
        assert 0.2 < replaced.float().mean() < 0.8
        # Of 18 the last 10 are kept, over the oldest.
        slots = {g % 10: source._label(g, teacher.num_classes) for g in range(8, 18)}
        assert source.labels.tolist() == [slots[i] for i in range(10)]
        found = source.labels[ring.int().argmax(1)]
        assert torch.equal(targets.labels[replaced], found[replaced])
        assert torch.equal(targets.labels[~replaced], inner_targets.labels[~replaced])
        assert torch.equal(images[~replaced], plain[~replaced])
        copy = prepare(refined(source=inner, share=0.5, augment=None), teacher)
        copy.load_state_dict(source.state_dict())
        assert torch.equal(copy.labels, source.labels)

    def test_checkpoint_of_another_image_size_is_refused(self):
        source = prepare(refined(), classifier(0))
        source.load_state_dict(
            dict(ring=torch.zeros(3, 3, 8, 8, dtype=torch.uint8), written=torch.tensor(3))
        )
        with pytest.raises(ValueError, match='image size'):
            source.draw(ITEMS)

    def test_a_prior_that_does_not_apply_is_left_out(self, monkeypatch):
        from mmdfkd.synthesis import DivergencePrior

        monkeypatch.setattr(DivergencePrior, 'unsuited', lambda self, teacher: 'a reason')
        teacher, student = networks(classifier)
        logs = prepare(refined(), teacher).refresh(teacher, student, 0)
        assert 'refined/divergence' not in logs and 'refined/target' in logs

    def test_no_prior_that_applies(self):
        """Said at the start, not at the first refresh."""
        source = refined(priors=[dict(type='mmdfkd.BatchNormPrior')])
        with pytest.raises(ValueError, match='RefinedSource: none of its priors suits'):
            prepare(source, classifier(0))

    @pytest.mark.parametrize('name', ['every', 'batch', 'steps', 'max_images'])
    def test_bad_arguments(self, name):
        with pytest.raises(ValueError, match=name):
            refined(**{name: 0})
