"""Layout inversion through a teacher of every family; what stays assigned while views move."""

import math
from functools import cache

import numpy as np
import pytest
import torch
import toy

from mmdfkd.adapters import Adapter, Normalizer, build_adapter, two_stage
from mmdfkd.adapters.matching import SetCriterion
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import LayoutInversionSource

SIZE = (64, 64)
DETRS = [kind for kind in toy.DETRS if kind != 'refine']
FAMILIES = (*toy.ONE_STAGE, *DETRS, 'cascade')
POOL = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.ProceduralRenderer'),
    pool_size=4,
    balance=False,
    num_workers=0,
)


@cache
def teacher_of(kind: str) -> Adapter:
    if kind in toy.ONE_STAGE:
        model = toy.one_stage_model(kind)
    else:
        model = toy.cascade_model() if kind == 'cascade' else toy.small_detr(kind)
    return build_adapter(toy.build(model), Normalizer.from_config(toy.whole(model)))


def prepared(kind: str, **kwargs) -> tuple[LayoutInversionSource, Adapter]:
    settings = dict(source=POOL, images=2, batch=2, starts=4, boxes=(1, 2), share=1.0)
    # Of random weights boxes are thin, and RetinaNet's anchors as large as these images.
    settings['scene'] = dict(least_size=1.0)
    cfg = dict(type='mmdfkd.LayoutInversionSource', **{**settings, **kwargs})
    source, teacher = MODELS.build(cfg), teacher_of(kind)
    source.prepare(teacher, seed=0, image_size=SIZE, device='cpu')
    return source, teacher


@pytest.mark.parametrize('kind', FAMILIES)
def test_images_of_every_family(kind):
    source, teacher = prepared(kind, steps=2)
    # Of random weights a teacher may find nothing, which stops a run.
    source.shown += 1
    state = torch.get_rng_state()
    logs = source.refresh(teacher, teacher, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(math.isfinite(value) for value in logs.values())
    assert len(source.bank) == 2
    images, targets = source.draw([dict(g=g) for g in range(3)])
    assert images.shape == (3, 3, *SIZE) and images.isfinite().all()
    for boxes, labels in zip(targets.boxes, targets.box_labels, strict=True):
        assert len(boxes) == len(labels) and (labels < 3).all()
        assert (boxes >= 0).all() and (boxes <= 64).all()
    assert all(p.grad is None for p in teacher.net.parameters())


@pytest.mark.parametrize('kind', DETRS)
def test_a_box_keeps_its_query_while_views_move(kind, monkeypatch):
    """Matched in the first fifth of ten steps and at the revision; not where queries are chosen."""
    source, teacher = prepared(kind, steps=10, grow=(0.5,))
    source.shown += 1
    made, used = [], []
    match, loss = SetCriterion.match, SetCriterion.loss

    def matched(self, *arguments):
        made.append(match(self, *arguments))
        return made[-1]

    def compared(self, logits, boxes, wanted, labels, pairs, size):
        used.append((pairs, len(wanted)))
        return loss(self, logits, boxes, wanted, labels, pairs, size)

    monkeypatch.setattr(SetCriterion, 'match', matched)
    monkeypatch.setattr(SetCriterion, 'loss', compared)
    source.refresh(teacher, teacher, 0)
    assert len(used) == 2 * 10
    steady = kind not in ('dino', 'two-stage')
    assert len(made) == (2 * (2 + 1) if steady else 2 * 10)
    for i in range(2):
        pairs = [query.tolist() for (query, _), _ in used[i::2]]
        assert all(len(p) == count for p, (_, count) in zip(pairs, used[i::2], strict=True))
        if steady:
            assert pairs[1] == pairs[2] == pairs[3] == pairs[4] and pairs[5] == pairs[9]


def test_anchors_are_assigned_anew_in_every_view(monkeypatch):
    """Boxes move with the views, so an assignment of anchors holds for one step."""
    source, teacher = prepared('cascade', steps=3, grow=())
    source.shown += 1
    seen, plan = [], two_stage.plan_layout

    def planned(boxes, *arguments):
        seen.append(boxes.tolist())
        return plan(boxes, *arguments)

    monkeypatch.setattr(two_stage, 'plan_layout', planned)
    source.refresh(teacher, teacher, 0)
    assert len(seen) == 2 * 3 and len({str(boxes) for boxes in seen}) == 6


@pytest.mark.parametrize(('flip', 'matchings'), [(0.0, 2 * 2), (0.5, 2 * 10)])
def test_pixel_inversion_keeps_queries_too(flip, matchings, monkeypatch):
    """Not where views are mirrored; what judges the images themselves matches by itself."""
    settings = dict(source=None, share=1.0, images=2, batch=2, steps=10, checks=1)
    views = dict(type='mmdfkd.InversionViews', flip=flip)
    priors = [dict(type='mmdfkd.TargetPrior')]
    cfg = dict(type='mmdfkd.PixelInversionSource', views=views, priors=priors, **settings)
    source, teacher = MODELS.build(cfg), teacher_of('detr')
    source.prepare(teacher, seed=0, image_size=SIZE, device='cpu')
    made, match = [], SetCriterion.match

    def matched(self, *arguments):
        made.append(torch.is_grad_enabled())
        return match(self, *arguments)

    monkeypatch.setattr(SetCriterion, 'match', matched)
    logs = source.refresh(teacher, teacher, 0)
    assert np.isfinite(logs['pixels/after'])
    assert sum(made) == matchings
