"""What a teacher is, the priors chosen for it, and what all priors have in common."""

import pytest
import torch
from prior_nets import teacher
from synthesis_nets import detector

from mmdfkd.adapters import Targets
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import Prior, SynthesisContext, inspect_teacher

BATCH_LEVEL = {'batch_norm', 'information_entropy', 'contrastive', 'boundary'}


def used(report) -> set[str]:
    return {cfg['type'].removeprefix('mmdfkd.') for cfg in report.priors}


@pytest.mark.parametrize(
    ('kind', 'facts', 'priors'),
    [
        (
            'vit',
            dict(batch_norms=0, attention=4, windows=0, prefix_tokens=1, class_token=True),
            {'AttentionPrior', 'PatchSimilarityPrior', 'PatchBoundaryPrior'},
        ),
        (
            'deit',
            dict(batch_norms=0, attention=4, windows=0, prefix_tokens=2, class_token=True),
            {'AttentionPrior', 'PatchSimilarityPrior', 'PatchBoundaryPrior'},
        ),
        (
            'vitdet',
            dict(batch_norms=0, attention=2, windows=2, prefix_tokens=0, class_token=None),
            {'AttentionPrior', 'PatchSimilarityPrior', 'PatchBoundaryPrior'},
        ),
        ('swin', dict(batch_norms=0, attention=0, windows=4), {'PatchBoundaryPrior'}),
        ('resnet', dict(batch_norms=20, attention=0, windows=0, patch=None), {'BatchNormPrior'}),
    ],
)
def test_report(kind, facts, priors):
    report = inspect_teacher(teacher(kind))
    assert {name: getattr(report, name) for name in facts} == facts
    always = {'TargetPrior', 'TotalVariationPrior', 'DivergencePrior'}
    assert used(report) == priors | always
    assert used(inspect_teacher(teacher(kind), student=False)) == priors | always - {
        'DivergencePrior'
    }
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    for choice in report.choices:
        assert choice.why and choice.cfg['type'] in text


@pytest.mark.parametrize('targets', [True, False])
def test_every_prior_is_considered(targets):
    choices = inspect_teacher(teacher('vit'), targets=targets).choices
    # Others' priors may be registered, too: those of the documents' examples are.
    known = {
        f'mmdfkd.{kind.__name__}'
        for kind in MODELS.module_dict.values()
        if issubclass(kind, Prior) and kind.__module__.startswith('mmdfkd.')
    }
    assert {'mmdfkd.SubBoxPrior', 'mmdfkd.LogitDistancePrior'} <= known
    assert sorted(choice.cfg['type'] for choice in choices) == sorted(known)


def test_report_of_a_detector():
    report = inspect_teacher(detector(0))
    assert report.family == 'two-stage' and report.num_classes == 3
    assert {'BatchNormPrior', 'TargetPrior'} <= used(report)
    left = {c.cfg['type']: c.why for c in report.choices if not c.used}
    assert 'names no class of a whole image' in left['mmdfkd.BoundaryPreservingPrior']


def gradients(kind: str, amp: bool = False):
    """Every prior that suits a teacher, its value, and its gradient."""
    net, student = teacher(kind), teacher('vit', seed=1)
    priors = [MODELS.build(choice.cfg) for choice in inspect_teacher(net).choices]
    priors = [prior for prior in priors if prior.unsuited(net) is None]
    taps = tuple(dict.fromkeys(tap for prior in priors for tap in prior.taps(net)))
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    images.requires_grad_()
    targets = Targets(labels=torch.tensor([0, 0, 1, 2]))
    found = []
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        ctx = SynthesisContext(images, targets, net, student, taps=taps)
        for prior in priors:
            value = prior(ctx)
            (gradient,) = torch.autograd.grad(
                value[0] if value.dim() else value, [images], retain_graph=True
            )
            found.append((prior, value.detach(), gradient))
    assert all(parameter.grad is None for parameter in net.net.parameters())
    return found


@pytest.mark.parametrize('kind', ['vit', 'vitdet', 'resnet'])
def test_image_level_terms_touch_no_other_image(kind):
    count = 0
    for prior, value, gradient in gradients(kind):
        count += 1
        assert torch.isfinite(value).all(), prior.name
        per_image = gradient.abs().sum((1, 2, 3))
        if prior.name in BATCH_LEVEL:
            assert value.dim() == 0
        else:
            assert value.shape == (4,), prior.name
            assert (per_image[1:] == 0).all(), f'{prior.name} depends on other images'
        # Where both networks already disagree the masked divergence has no gradient.
        assert prior.name in ('divergence', 'boundary') or per_image[0] > 0, prior.name
    assert count >= 9


@pytest.mark.parametrize('kind', ['vit', 'vitdet', 'resnet'])
def test_bfloat16_stays_finite_and_near(kind):
    full = {type(prior): value for prior, value, _ in gradients(kind)}
    for prior, value, gradient in gradients(kind, amp=True):
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all(), prior.name
        assert value.dtype == torch.float32 or prior.name in ('target', 'divergence'), prior.name
        if prior.name != 'divergence':
            torch.testing.assert_close(
                value.float(),
                full[type(prior)],
                rtol=0.3,
                atol=0.2,
                msg=lambda m, p=prior: p.name + m,
            )
