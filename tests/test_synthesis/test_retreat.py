"""Sources that draw less of what has collapsed, and priors that a report chooses."""

import numpy as np
import pytest
import torch
from prior_nets import teacher
from synthesis_nets import classifier

from mmdfkd.registry import MODELS
from mmdfkd.synthesis import automatic, inspect_teacher
from mmdfkd.synthesis.automatic import AutomaticPriors, build_priors
from mmdfkd.synthesis.objective import suited_priors

POOL = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.NoiseRenderer'),
    pool_size=6,
    balance=False,
    augment=None,
    num_workers=0,
)
WHY = ('coverage',)


def refined(**settings):
    return dict(type='mmdfkd.RefinedSource', source=POOL, **settings)


def ready(cfg):
    source = MODELS.build(cfg)
    source.prepare(classifier(0), seed=2, image_size=(16, 16), device='cpu')
    return source


def test_refined_images_give_way_and_the_checkpoint_knows():
    source = ready(refined(share=0.8))
    source._keep(torch.full((4, 3, 16, 16), 255, dtype=torch.uint8), torch.zeros(4))
    items = [dict(g=g) for g in range(400)]

    def drawn():
        """Share of the images that are refined ones: all white."""
        return float((source.draw(items)[0].amin((1, 2, 3)) == 1).float().mean())

    assert drawn() == pytest.approx(0.8, abs=0.06)
    assert source.on_collapse(WHY) == (
        'RefinedSource draws a share of 0.4 of its own images, not 0.8'
    )
    assert drawn() == pytest.approx(0.4, abs=0.06)
    state = source.state_dict()
    again = MODELS.build(refined(share=0.8))
    again.load_state_dict(state)
    assert again.share_now == 0.4
    # A checkpoint of before there was such a count.
    again.load_state_dict({k: v for k, v in state.items() if not k.endswith('retreats')})
    assert again.share_now == 0.8


def test_a_kept_pool_stays_where_a_learning_part_gives_way():
    """To keep or to mix images is not to make them."""
    kept = dict(type='mmdfkd.ReplaySource', source=POOL, prefill=4)
    nested = dict(type='mmdfkd.MixtureSource', sources=[POOL, POOL])
    source = ready(
        dict(type='mmdfkd.MixtureSource', sources=[kept, nested, refined()], weights=[1, 1, 2])
    )
    said = source.on_collapse(WHY)
    assert said == 'MixtureSource draws a share of 0.25 from the sources that learn, not 0.5'
    assert source.shares_at(0) == pytest.approx([0.375, 0.375, 0.25])


def test_what_has_nothing_to_fall_back_on_says_so():
    assert MODELS.build(POOL).on_collapse(WHY) is None
    assert MODELS.build(refined(share=0.0)).on_collapse(WHY) is None


def test_a_mixture_draws_more_of_what_does_not_learn():
    parts = [refined(), POOL, refined()]
    source = MODELS.build(dict(type='mmdfkd.MixtureSource', sources=parts, weights=[2, 4, 2]))
    np.testing.assert_allclose(source.shares_at(0), [0.25, 0.5, 0.25])
    assert source.on_collapse(WHY) == (
        'MixtureSource draws a share of 0.25 from the sources that learn, not 0.5'
    )
    np.testing.assert_allclose(source.shares_at(0), [0.125, 0.75, 0.125])
    source.on_collapse(WHY)
    np.testing.assert_allclose(source.shares_at(0), [0.0625, 0.875, 0.0625])
    # Where all learn, each does what it can.
    source = MODELS.build(dict(type='mmdfkd.MixtureSource', sources=parts[::2]))
    assert source.on_collapse(WHY).count('RefinedSource draws a share of 0.125') == 2
    np.testing.assert_allclose(source.shares_at(0), [0.5, 0.5])
    plain = MODELS.build(dict(type='mmdfkd.MixtureSource', sources=[POOL, POOL]))
    assert plain.on_collapse(WHY) is None


def test_a_kept_bank_asks_its_source():
    source = MODELS.build(dict(type='mmdfkd.ReplaySource', source=refined(), prefill=2))
    assert source.on_collapse(WHY).startswith('RefinedSource draws a share of 0.125')


@pytest.mark.parametrize('kind', ['vit', 'resnet'])
@pytest.mark.parametrize('targets', [True, False])
def test_auto_takes_what_the_report_says(kind, targets, monkeypatch):
    told = []
    monkeypatch.setattr(automatic, 'print_log', lambda text, logger: told.append(text))
    net = teacher(kind)
    wanted = inspect_teacher(net, targets=targets).priors
    priors = build_priors('auto', 'XSource', targets)
    assert isinstance(priors, AutomaticPriors) and len(priors) == 0
    used = suited_priors(priors, net, 'X')
    names = [f'mmdfkd.{type(prior).__name__}' for prior in used]
    assert names == [cfg['type'] for cfg in wanted]
    assert [prior.weight for prior in used] == [cfg['weight'] for cfg in wanted]
    assert ('mmdfkd.TargetPrior' in names) == targets
    assert ('mmdfkd.InformationEntropyPrior' in names) != targets
    assert ('mmdfkd.BatchNormPrior' in names) == (kind == 'resnet')
    # Once: a resumed run asks again.
    assert suited_priors(priors, net, 'X') == used
    (said,) = told
    assert "X: priors='auto' takes" in said and 'fine noise satisfies any teacher' in said


@pytest.mark.parametrize('every', [0, 5])
def test_auto_asks_the_student_only_where_there_is_one(every):
    """Images made once are made before the student learns: it is the teacher then."""
    source = MODELS.build(
        dict(
            type='mmdfkd.PixelInversionSource',
            source=None,
            images=4,
            share=1.0,
            every=every,
            priors='auto',
        )
    )
    suited_priors(source.priors, teacher('vit'), 'X')
    asked = [type(prior).__name__ for prior in source.priors if prior.asks_student]
    assert bool(asked) == bool(every)


def test_priors_that_are_given_stay():
    given = build_priors([dict(type='mmdfkd.TotalVariationPrior', weight=0.3)], 'XSource')
    (used,) = suited_priors(given, teacher('vit'), 'X')
    assert (type(used).__name__, used.weight) == ('TotalVariationPrior', 0.3)
    with pytest.raises(ValueError, match="XSource: priors is a list of configs, or 'auto', got 'a"):
        build_priors('automatic', 'XSource')


def test_a_source_with_automatic_priors_refines():
    source = ready(refined(priors='auto', batch=5, steps=1, every=1))
    names = {type(prior).__name__ for prior in source._used}
    assert {'TargetPrior', 'AttentionPrior', 'PatchBoundaryPrior'} <= names
    logs = source.refresh(classifier(0), classifier(1), 0)
    assert len(source.ring) == 5 and 'refined/attention' in logs
