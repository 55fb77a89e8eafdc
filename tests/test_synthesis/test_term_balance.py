"""What a collapse changes in a generator: the weights of its terms, or the generator itself."""

import copy

import pytest
import torch
from synthesis_nets import classifier

from mmdfkd.registry import MODELS

NET = dict(type='mmdfkd.ConvGenerator', noise_dims=8, channels=(8, 8, 8), base=4)
ENTROPY = dict(type='mmdfkd.InformationEntropyPrior', weight=5.0)
SELF = dict(type='mmdfkd.ClassPrior', weight=0.5, mode='self')
AGAINST = dict(type='mmdfkd.DivergencePrior', weight=1.0)
WHY, LEARNT = ('coverage',), ('divergence',)
ITEMS = [dict(g=g) for g in range(5)]


def made(*priors, **kwargs):
    cfg = dict(type='mmdfkd.GeneratorSource', generator=NET, batch=6, labelled=False)
    return MODELS.build(dict(cfg, priors=list(priors), **kwargs))


def ready(source, fill=True):
    source.prepare(classifier(0), seed=2, image_size=(16, 16), device='cpu')
    if fill:
        source.fill(classifier(0))
    return source


def weights(source) -> list[float]:
    return [source.balance.weight_of(prior) for prior in source.priors]


def test_terms_count_otherwise_and_the_objective_is_theirs():
    source = ready(made(SELF, ENTROPY, AGAINST))
    assert weights(source) == [0.5, 5.0, 1.0]
    assert source.on_collapse(WHY) == (
        'GeneratorSource: information_entropy weighs 10, not 5, divergence weighs 0.5, not 1'
    )
    logs = source.refresh(classifier(0), classifier(1), 0)
    terms = [logs[f'generator/{prior.name}'] for prior in source.priors]
    wanted = 0.5 * terms[0] + 10 * terms[1] + 0.5 * terms[2]
    assert logs['generator/objective'] == pytest.approx(wanted, rel=1e-5)


def test_where_the_student_has_learned_it_all_the_adversary_stays():
    source = ready(made(SELF, ENTROPY, AGAINST))
    assert source.on_collapse(LEARNT) == 'GeneratorSource: information_entropy weighs 10, not 5'
    source.on_collapse((*WHY, *LEARNT))
    assert weights(source) == [0.5, 20.0, 0.5]


def test_every_third_alarm_starts_the_generator_anew():
    source = ready(made(SELF, ENTROPY))
    said = []
    for _ in range(9):
        before = [p.clone() for p in source.generator.parameters()]
        images = source.draw(ITEMS)[0]
        said.append(source.on_collapse(WHY))
        same = all(map(torch.equal, before, source.generator.parameters()))
        assert same == ('anew' not in said[-1])
        assert torch.equal(images, source.draw(ITEMS)[0]) == same
        assert not any(p.requires_grad for p in source.generator.parameters())
    # Four changes of the weights at most.
    assert [i for i, text in enumerate(said) if 'anew' in text] == [2, 5, 6, 7, 8]
    assert weights(source) == [0.5, 80.0]
    assert said[2] == 'GeneratorSource starts its generator anew'


@pytest.mark.parametrize('only', [ENTROPY, AGAINST, SELF], ids=['diverse', 'adverse', 'neither'])
def test_one_kind_of_terms_has_nothing_to_shift(only):
    """The weight of the only term is no weight, to an optimiser that scales its steps."""
    source = ready(made(only))
    source.refresh(classifier(0), classifier(1), 0)
    before = weights(source)
    assert source.optimizer.state_dict()['state']
    assert 'anew' in source.on_collapse(WHY)
    assert weights(source) == before and not source.optimizer.state_dict()['state']
    # Statistics are those of the new weights: draws are images at once.
    images = source.draw(ITEMS)[0]
    assert torch.isfinite(images).all() and images.std() > 0.01


def test_attention_is_an_adversary_by_its_sign():
    for weight, role in ((1.0, None), (-0.5, 'adversary')):
        cfg = dict(type='mmdfkd.AttentionConsistencyPrior', weight=weight)
        assert MODELS.build(cfg).role == role


@pytest.mark.parametrize('alarms', [1, 3])
def test_resumed_runs_go_on_alike(alarms):
    teacher, student = classifier(0), classifier(1)
    source = ready(made(SELF, ENTROPY, AGAINST))
    source.refresh(teacher, student, 0)
    for _ in range(alarms):
        source.on_collapse(WHY)
    saved = copy.deepcopy(source.state_dict())
    again = ready(made(SELF, ENTROPY, AGAINST), fill=False)
    again.load_state_dict(saved)
    for one in (source, again):
        one.refresh(teacher, student, 1)
        one.on_collapse(WHY)
        one.refresh(teacher, student, 2)
    assert weights(source) == weights(again) != [0.5, 5.0, 1.0]
    assert torch.equal(source.draw(ITEMS)[0], again.draw(ITEMS)[0])


def test_checkpoints_of_before_there_were_alarms_are_read():
    source = ready(made(SELF, ENTROPY))
    state = source.state_dict()
    del state['balance.collapses']
    source.on_collapse(WHY)
    source.load_state_dict(state)
    assert weights(source) == [0.5, 5.0]
