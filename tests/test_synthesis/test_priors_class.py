"""Priors on the teacher's answers, against references in float64."""

import math

import numpy as np
import pytest
import torch
from prior_nets import teacher
from synthesis_nets import detector
from torch.multiprocessing import get_context

from mmdfkd.adapters import Targets
from mmdfkd.synthesis import (
    ClassPrior,
    DivergencePrior,
    InformationEntropyPrior,
    JensenShannonPrior,
    SynthesisContext,
)
from mmdfkd.synthesis.priors.class_prior import soft_target
from mmdfkd.synthesis.priors.information_entropy import information_entropy
from mmdfkd.synthesis.priors.jensen_shannon import jensen_shannon
from mmdfkd.synthesis.priors.ranks import of_other_ranks, summed_over_ranks


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(float) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def context(kind: str = 'vit', count: int = 4, **kwargs) -> SynthesisContext:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % 5
    return SynthesisContext(images, Targets(labels=labels), teacher(kind), **kwargs)


def test_class_of_each_mode():
    ctx = context(seed=3, serials=[7, 9, 7, 2])
    p = softmax(ctx.teacher_response.logits.numpy())
    labels = ctx.targets.labels.tolist()
    hard = [-math.log(row[k]) for row, k in zip(p, labels, strict=True)]
    np.testing.assert_allclose(ClassPrior(mode='hard')(ctx).numpy(), hard, rtol=1e-4)
    own = -np.log(p.max(-1))
    np.testing.assert_allclose(ClassPrior(mode='self')(ctx).numpy(), own, rtol=1e-4)
    targets = [
        soft_target(ctx.rng('soft-target', i), k, 5, (0.5, 0.95)) for i, k in enumerate(labels)
    ]
    kl = [(t * np.log(t / row)).sum() for t, row in zip(targets, p, strict=True)]
    np.testing.assert_allclose(ClassPrior(mode='soft')(ctx).numpy(), kl, rtol=1e-4)


def test_soft_targets_name_one_class_and_follow_from_the_image():
    for classes in (2, 10, 1000):
        rng = np.random.default_rng(0)
        found = [soft_target(rng, 1, classes, (0.6, 0.9)) for _ in range(50)]
        for target in found:
            assert target.sum() == pytest.approx(1) and (target >= 0).all()
            assert 0.6 <= target[1] <= 0.9, 'the share does not depend on the number of classes'
    first, again, other = (context(seed=s, serials=[5, 6, 7, 8]) for s in (1, 1, 2))
    soft = ClassPrior(mode='soft')
    assert torch.equal(soft(first), soft(again)) and not torch.equal(soft(first), soft(other))


def test_class_on_a_detector():
    net = detector(0)
    assert 'TargetPrior' in ClassPrior(mode='soft').unsuited(net)
    prior = ClassPrior(mode='self')
    assert prior.unsuited(net) is None
    net.net.eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        probe = net.propose(net.encode(images))
        ctx = SynthesisContext(images, Targets(), net, probe=probe)
        p = softmax(ctx.teacher_response.logits.numpy())
        found = prior(ctx).numpy()
        entropy = InformationEntropyPrior()(ctx).item()
    scores = [score.double().numpy() for score in probe.scores]
    rows = np.split(-np.log(p.max(-1)), [len(scores[0])])
    expected = [(r * s).sum() / s.sum() for r, s in zip(rows, scores, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    mean = (p[:, :3] * np.concatenate(scores)[:, None]).sum(0)
    mean /= mean.sum()
    assert entropy == pytest.approx(1 + (mean * np.log(mean)).sum() / math.log(3), rel=1e-4)


def test_class_needs_its_targets():
    ctx = context()
    ctx.targets = Targets()
    with pytest.raises(ValueError, match="mode='self'"):
        ClassPrior(mode='soft')(ctx)
    with pytest.raises(ValueError, match='mode'):
        ClassPrior(mode='firm')
    with pytest.raises(ValueError, match='sure'):
        ClassPrior(sure=(0.5, 1.0))


def test_information_entropy():
    rng = np.random.default_rng(0)
    p = softmax(rng.standard_normal((6, 10)) * 3)
    mean = p.mean(0)
    expected = 1 + (mean * np.log(mean)).sum() / math.log(10)
    found = information_entropy(torch.from_numpy(p))
    assert found.item() == pytest.approx(expected, rel=1e-12)
    # The same images twice, and DAFL's form with its weight at ten classes.
    assert information_entropy(torch.from_numpy(p).repeat(2, 1)).item() == pytest.approx(expected)
    assert 5 * (found.item() - 1) == pytest.approx(5 * (mean * np.log10(mean)).sum())
    assert information_entropy(torch.eye(4)).item() == pytest.approx(0, abs=1e-6)
    assert information_entropy(torch.eye(4)[:1]).item() == pytest.approx(1)
    # The bound that is stated for fewer images than classes.
    bound = 1 - math.log(2) / math.log(4)
    assert information_entropy(torch.eye(4)[:2]).item() == pytest.approx(bound)
    x = torch.from_numpy(p).requires_grad_()
    assert torch.autograd.gradcheck(information_entropy, (x,))


def test_information_entropy_takes_two_classes():
    """Of one it would be a division by ``log 1``."""
    prior = InformationEntropyPrior()
    assert 'TargetPrior' in prior.unsuited(detector(0, classes=1))
    assert prior.unsuited(detector(0, classes=2)) is None
    assert prior.unsuited(teacher('vit')) is None


def test_jensen_shannon():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 6, 10)) * 4
    p, q = softmax(a), softmax(b)
    m = (p + q) / 2
    expected = ((p * np.log2(p / m)).sum(-1) + (q * np.log2(q / m)).sum(-1)) / 2
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(jensen_shannon(first, second).numpy(), expected, rtol=1e-10)
    assert torch.autograd.gradcheck(
        jensen_shannon, (first.requires_grad_(), second.requires_grad_())
    )
    # Far apart it is one bit, and the gradient does not vanish among many classes.
    far = 40 * torch.eye(2)
    assert jensen_shannon(far[:1], far[1:]).item() == pytest.approx(1)
    many = torch.randn(1, 1000, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(jensen_shannon(many, torch.zeros_like(many)).sum(), [many])
    assert (gradient != 0).all()


def test_jensen_shannon_prior():
    ctx = context(student=teacher('vit', seed=1))
    found = JensenShannonPrior(temperature=2.0)(ctx)
    expected = 1 - jensen_shannon(ctx.teacher_response.logits / 2, ctx.student_response.logits / 2)
    torch.testing.assert_close(found, expected)
    same = SynthesisContext(ctx.images, ctx.targets, ctx.teacher, ctx.teacher)
    torch.testing.assert_close(JensenShannonPrior()(same), torch.ones(4), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match='temperature'):
        JensenShannonPrior(temperature=0)
    with pytest.raises(ValueError, match='DivergencePrior: temperature is positive, got -1'):
        DivergencePrior(temperature=-1)


def test_divergence_is_not_rounded_under_mixed_precision():
    """Steps of bfloat16 are .03 at a log-probability of -5."""
    with torch.autocast('cpu', dtype=torch.bfloat16):
        ctx = context(student=teacher('vit', seed=1))
        logits = [r.logits for r in (ctx.teacher_response, ctx.student_response)]
        found = DivergencePrior(masked=False)(ctx)
    assert all(one.dtype == torch.bfloat16 for one in logits)
    p, q = (softmax(one.detach().double().numpy()) for one in logits)
    expected = -(p * (np.log(p) - np.log(q))).sum(-1)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-6)


ROWS = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _one_rank(rank: int, path: str) -> None:
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{path}/store', rank=rank, world_size=2
    )
    # Unequal parts, as sums allow.
    own = (ROWS[:3], ROWS[3:])[rank].clone().requires_grad_()
    value = information_entropy(own)
    value.backward()
    others = of_other_ranks(torch.full((2, 1), float(rank)))
    whole = summed_over_ranks(torch.tensor([1.0 + rank]))
    torch.save([value.detach(), own.grad, others, whole], f'{path}/{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='autograd with device threads does not fork')
def test_two_processes_are_as_one_with_all_images(tmp_path):
    """Same value everywhere; the gradient of the own part, times the number of processes."""
    ctx = get_context('fork')
    ranks = [ctx.Process(target=_one_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    rows = ROWS.clone().requires_grad_()
    value = information_entropy(rows)
    value.backward()
    for rank, part in enumerate((rows.grad[:3], rows.grad[3:])):
        found, gradient, others, whole = torch.load(tmp_path / f'{rank}.pt')
        torch.testing.assert_close(found, value.detach())
        torch.testing.assert_close(gradient, 2 * part)
        assert others.flatten().tolist() == [1.0 - rank] * 2
        assert whole.item() == 3
