"""The generator source: it learns, leaves the networks alone, and can be resumed bit by bit."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synthesis_nets import classifier, detector
from torch import nn

from mmdfkd.adapters import Targets
from mmdfkd.registry import MODELS
from mmdfkd.synthesis.codes import class_weights, label_codes
from mmdfkd.synthesis.sources.generated import GeneratorSource
from mmdfkd.synthesis.sources.generator_presets import PRESETS, PresetGeneratorSource
from mmdfkd.synthesis.training import training

NET = dict(type='mmdfkd.ConvGenerator', noise_dims=8, channels=(8, 8, 8), base=4)
ITEMS = [dict(g=g) for g in range(7)]


def made(**kwargs) -> GeneratorSource:
    return MODELS.build({**dict(type='mmdfkd.GeneratorSource', generator=NET, batch=10), **kwargs})


def ready(source, teacher, seed=0, size=16, folder=None, fill=True):
    source.folder = folder
    source.prepare(teacher, seed=seed, image_size=(size, size), device='cpu')
    if fill:
        source.fill(teacher)
    return source


def snapshot(*adapters):
    """Weights, statistics, modes, and what every parameter wants and holds of gradients."""
    return [
        (
            {k: v.clone() for k, v in adapter.net.state_dict().items()},
            [m.training for m in adapter.net.modules()],
            [(p.requires_grad, p.grad) for p in adapter.net.parameters()],
        )
        for adapter in adapters
    ]


def same(first, second) -> bool:
    return all(
        all(torch.equal(a[0][k], b[0][k]) for k in a[0]) and a[1] == b[1] and a[2] == b[2]
        for a, b in zip(first, second, strict=True)
    )


def equal_states(first: dict, second: dict) -> bool:
    """Bit by bit, through nested containers."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            equal_states(first[k], second[k]) for k in first
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal_states, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    return first == second


class TestRounds:
    def test_the_objective_falls_and_the_networks_stay(self):
        teacher, student = classifier(0), classifier(1)
        student.net.train()
        source = ready(made(steps=4, generator=dict(NET, label_dims=5)), teacher)
        source.train()
        before = snapshot(teacher, student)
        torch.manual_seed(0)
        state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        logs = [source.refresh(teacher, student, i) for i in range(12)]
        assert logs[-1]['generator/objective'] < logs[0]['generator/objective'] - 0.5
        assert logs[-1]['generator/target'] < logs[0]['generator/target']
        # Nothing is left on any network, nor on the generator.
        assert same(before, snapshot(teacher, student))
        assert all(not p.requires_grad and p.grad is None for p in source.parameters())
        assert all(m.training for m in source.modules())
        assert torch.equal(state, torch.get_rng_state())
        assert np.array_equal(np_state, np.random.get_state()[1])

    def test_a_gradient_waiting_on_the_student_is_not_touched(self):
        """A generator step must not add to what the next student step consumes."""
        teacher, student = classifier(0), classifier(1)
        for parameter in student.net.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        ready(made(), teacher).refresh(teacher, student, 0)
        assert all((p.grad == 0.5).all() for p in student.net.parameters())

    def test_when(self):
        teacher = classifier(0)
        source = ready(made(every=3, start=2), teacher)
        done = [bool(source.refresh(teacher, classifier(1), i)) for i in range(9)]
        assert [i for i, did in enumerate(done) if did] == [2, 5, 8]
        assert int(source.rounds) == 3

    def test_first_rounds_have_no_adversary(self):
        teacher = classifier(0)
        both = ready(made(first=2), teacher)
        alone = ready(made(first=2, priors=[dict(type='mmdfkd.TargetPrior', weight=1.0)]), teacher)
        for mine, other in zip(
            both.generator.parameters(), alone.generator.parameters(), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)

    def test_labels_are_balanced_and_noise_is_new_in_every_step(self):
        source = ready(made(steps=2), classifier(0))
        first, second = source._inputs(0), source._inputs(1)
        assert np.bincount(first['labels'].numpy()).tolist() == [2] * 5
        assert not torch.equal(first['noise'], second['noise'])
        assert not torch.equal(first['labels'], second['labels'])
        again = ready(made(steps=2), classifier(0), seed=1)
        assert not torch.equal(first['noise'], again._inputs(0)['noise'])

    def test_every_process_takes_its_own_part(self, monkeypatch):
        source = ready(made(), classifier(0))
        whole = source._inputs(3)['noise']
        parts = []
        for rank in range(2):
            monkeypatch.setattr(
                'mmdfkd.synthesis.sources.generated.get_dist_info', lambda rank=rank: (rank, 2)
            )
            parts.append(source._inputs(3)['noise'])
        assert torch.equal(torch.cat(parts), whole)

    def test_held_noise_is_trained_and_the_best_of_each_image_kept(self):
        teacher, student = classifier(0), classifier(1)
        source = ready(
            made(steps=5, hold=True, noise_lr=0.05, share=1.0, bank={}, restart=True), teacher
        )
        start = source._inputs(0)
        source.refresh(teacher, student, 0)
        images, targets, _ = source.bank.take(source.bank.ids)
        assert torch.equal(targets.labels, start['labels'])
        assert source.optimizer is None
        # As it was at first: the bank's images are better on average.
        fresh = ready(made(hold=True), teacher)
        with training(fresh.generator), torch.no_grad():
            raw = fresh._render(fresh.generator, start)

        def loss(pixels):
            with torch.no_grad():
                memory = teacher.encode(pixels)
                return teacher.target_loss(memory, Targets(labels=start['labels'])).mean()

        assert loss(images) < loss(raw)

    def test_a_generator_starts_anew_at_the_end_of_its_life(self):
        teacher, student = classifier(0), classifier(1)
        source = ready(made(life=2), teacher)
        weights = []
        for i in range(3):
            source.refresh(teacher, student, i)
            weights.append(source.generator.stem.weight.clone())
        assert (weights[1] - weights[0]).abs().max() < 0.01
        assert (weights[2] - weights[1]).abs().max() > 0.1
        assert len(source.optimizer.state_dict()['state']) and all(
            s['step'] == 1 for s in source.optimizer.state_dict()['state'].values()
        )

    def test_an_objective_that_is_not_finite_updates_nothing(self):
        teacher, student = classifier(0), classifier(1)
        source = ready(made(), teacher)
        before = copy.deepcopy(source.generator.state_dict())
        with torch.no_grad():
            teacher.net.head.layers.head.bias.fill_(float('nan'))
        with pytest.raises(FloatingPointError, match='target nan'):
            source.refresh(teacher, student, 0)
        for name, value in source.generator.named_parameters():
            assert torch.equal(value, before[name])
        assert int(source.rounds) == 0


class TestMeta:
    def source(self, kind):
        return made(
            meta=kind,
            steps=3,
            hold=True,
            share=1.0,
            bank={},
            optimizer=dict(type='SGD', lr=0.1),
            meta_optimizer=dict(type='SGD', lr=1.0),
        )

    def test_reptile_moves_to_the_copy(self):
        """With SGD at rate 1 the generator becomes the copy, which is plain descent."""
        teacher, student = classifier(0), classifier(1)
        source = ready(self.source('reptile'), teacher)
        plain = ready(made(steps=3, hold=True, optimizer=dict(type='SGD', lr=0.1)), teacher)
        source.refresh(teacher, student, 0)
        plain.refresh(teacher, student, 0)
        for mine, other in zip(
            source.generator.parameters(), plain.generator.parameters(), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)

    def test_fomaml_moves_along_the_sum_of_the_copys_gradients(self):
        """Descent of the copy is its rate times that sum: the generator goes ten times as far."""
        teacher, student = classifier(0), classifier(1)
        source = ready(self.source('fomaml'), teacher)
        plain = ready(made(steps=3, hold=True, optimizer=dict(type='SGD', lr=0.1)), teacher)
        start = [p.clone() for p in plain.generator.parameters()]
        source.refresh(teacher, student, 0)
        plain.refresh(teacher, student, 0)
        for old, mine, other in zip(
            start, source.generator.parameters(), plain.generator.parameters(), strict=True
        ):
            torch.testing.assert_close(mine - old, 10 * (other - old), rtol=1e-3, atol=1e-5)


class TestDraws:
    def test_are_a_function_of_seed_index_and_state(self):
        teacher = classifier(0)
        source = ready(made(generator=dict(NET, label_dims=5)), teacher)
        source.refresh(teacher, classifier(1), 0)
        source.train()
        torch.manual_seed(0)
        state = torch.get_rng_state()
        images, targets = source.draw(ITEMS)
        assert torch.equal(state, torch.get_rng_state())
        assert images.shape == (7, 3, 16, 16) and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1 and not images.requires_grad
        assert targets.labels.shape == (7,) and len(set(targets.labels[:5].tolist())) == 5
        assert all(m.training for m in source.modules())
        assert torch.equal(images, source.draw(ITEMS)[0])
        # Whatever else is in the batch: to rounding, which a convolution may do by the batch.
        torch.testing.assert_close(source.draw(ITEMS[4:6])[0], images[4:6])
        again = ready(made(generator=dict(NET, label_dims=5)), copy.deepcopy(teacher))
        assert not torch.equal(images, again.draw(ITEMS)[0]), 'the state matters'
        again.refresh(teacher, classifier(1), 0)
        assert torch.equal(images, again.draw(ITEMS)[0])
        other = ready(made(generator=dict(NET, label_dims=5)), teacher, seed=1)
        assert not torch.equal(other.draw(ITEMS)[0], images)

    def test_statistics_are_those_of_the_present_weights(self):
        """Draws are made with them, and weights that move fast leave a running average behind."""
        teacher = classifier(0)
        source = ready(made(optimizer=dict(type='Adam', lr=0.05)), teacher)
        for i in range(3):
            source.refresh(teacher, classifier(1), i)
        inputs = source._inputs(2)
        drawn = copy.deepcopy(source.generator).eval()
        live = copy.deepcopy(source.generator).train()
        with torch.no_grad():
            gap = (source._render(drawn, inputs) - source._render(live, inputs)).abs().mean()
        assert gap < 0.01

    def test_share_comes_from_the_bank(self):
        teacher, student = classifier(0), classifier(1)
        source = ready(made(share=0.5, bank=dict(capacity=40), labelled=True), teacher)
        assert not len(source.bank)
        plain, _ = source.draw(ITEMS)
        for i in range(3):
            source.refresh(teacher, student, i)
        assert len(source.bank) == 30
        held = source.bank.take(source.bank.ids)[0]
        items = [dict(g=g) for g in range(200)]
        images, targets = source.draw(items)
        found = (images[:, None] == held[None]).flatten(2).all(2).any(1)
        assert 0.35 < found.float().mean() < 0.65
        # The generator knows no labels, so its images have none.
        assert targets == Targets() and plain.shape == (7, 3, 16, 16)
        alone = source.draw(items[:50])[0]
        torch.testing.assert_close(alone, images[:50])

    def test_all_from_the_bank_with_its_labels(self):
        teacher = classifier(0)
        source = ready(made(share=1.0, bank={}, first=1), teacher)
        images, targets = source.draw(ITEMS)
        held, shown, _ = source.bank.take(source.bank.ids)
        for image, label in zip(images, targets.labels, strict=True):
            at = (held == image).flatten(1).all(1).nonzero()[:, 0]
            assert len(at) and label in shown.labels[at]


@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        dict(steps=2, hold=True, noise_lr=0.02),
        dict(steps=2, meta='fomaml', share=1.0, bank=dict(capacity=20), life=3),
        dict(
            generator=dict(NET, label_dims=5, noisy_layers=2),
            restart=True,
            share=0.5,
            bank=dict(capacity=20),
        ),
    ],
    ids=['plain', 'noise', 'meta', 'noisy'],
)
@pytest.mark.parametrize('late', [False, True])
def test_resumed_bit_by_bit(kwargs, late, tmp_path):
    """Noise goes on where it stopped (it is not replayed), and so does the optimiser."""
    teacher, student = classifier(0), classifier(1)
    source = ready(made(**kwargs), teacher, folder=tmp_path)
    for i in range(2):
        source.refresh(teacher, student, i)
    saved = copy.deepcopy(source.state_dict())
    for i in range(2, 5):
        source.refresh(teacher, student, i)

    resumed = made(**kwargs)
    if late:
        resumed.load_state_dict(saved)
    ready(resumed, teacher, folder=tmp_path, fill=False)
    if not late:
        resumed.load_state_dict(saved)
    for i in range(2, 5):
        resumed.refresh(teacher, student, i)
    assert torch.equal(source.draw(ITEMS)[0], resumed.draw(ITEMS)[0])
    assert equal_states(source.state_dict(), resumed.state_dict())
    assert not equal_states(saved, resumed.state_dict())


class TestDetectors:
    def test_layouts_and_disagreement(self):
        teacher, student = detector(0), detector(1)
        source = ready(made(batch=4, steps=2), teacher, size=64)
        before = snapshot(teacher, student)
        logs = source.refresh(teacher, student, 0)
        assert set(logs) == {'generator/objective', 'generator/target', 'generator/divergence'}
        assert all(np.isfinite(list(logs.values()))) and logs['generator/target'] > 0
        assert same(before, snapshot(teacher, student))
        images, targets = source.draw(ITEMS[:2])
        assert images.shape == (2, 3, 64, 64) and targets == Targets()

    def test_disagreement_alone(self):
        teacher, student = detector(0), detector(1)
        source = made(
            batch=4,
            labelled=False,
            priors=[dict(type='mmdfkd.DivergencePrior')],
            generator=dict(NET, label_dims=3),
        )
        ready(source, teacher, size=64)
        before = source.generator.stem.weight.clone()
        logs = source.refresh(teacher, student, 0)
        assert np.isfinite(logs['generator/divergence'])
        assert not torch.equal(before, source.generator.stem.weight)


class TestCodes:
    def test_prototypes_keep_the_geometry_of_the_head(self):
        teacher = classifier(0)
        rows = class_weights(teacher)
        assert torch.equal(rows, teacher.net.head.layers.head.weight)
        codes = label_codes(teacher, 'prototypes', 8)
        centred = (rows - rows.mean(0)).double()
        wanted = torch.cdist(centred, centred)
        found = torch.cdist(codes.double(), codes.double())
        torch.testing.assert_close(found / found.sum(), wanted / wanted.sum(), rtol=1e-4, atol=1e-6)
        assert codes.square().mean().sqrt() == pytest.approx(1, abs=1e-5)
        leading = label_codes(teacher, 'prototypes', 2)
        torch.testing.assert_close(leading / leading[0, 0], codes[:, :2] / codes[0, 0])

    def test_of_a_detector_without_the_background(self):
        teacher = detector(0)
        assert torch.equal(class_weights(teacher), teacher.net.roi_head.bbox_head.fc_cls.weight[:3])

    def test_prototypes_are_no_boxes(self):
        """Of four classes; DETRs name a branch of boxes by its number."""
        head = nn.Module()
        head.cls_branches = nn.ModuleList([nn.Linear(6, 4)])
        head.reg_branches = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))])
        teacher = SimpleNamespace(num_classes=4, net=head)
        assert torch.equal(class_weights(teacher), head.cls_branches[0].weight)

    def test_onehot(self):
        codes = label_codes(classifier(0), 'onehot', 6)
        assert (codes.argmax(1) == torch.arange(5)).all() and ((codes != 0).sum(1) == 1).all()
        with pytest.raises(ValueError, match='label_dims is 4'):
            label_codes(classifier(0), 'onehot', 4)


@pytest.mark.parametrize('preset', PRESETS)
def test_every_preset_builds_and_steps(preset):
    teacher, student = classifier(0), classifier(1)
    small = dict(noise_dims=8, channels=(8, 8, 8), base=4)
    if preset == 'nayer':
        small.update(label_dims=5, noisy_layers=2)
    source = PresetGeneratorSource(
        preset, generator=small, batch=10, steps=2, first=min(PRESETS[preset].get('first', 0), 1)
    )
    ready(source, teacher)
    before = [p.clone() for p in source.generator.parameters()]
    logs = source.refresh(teacher, student, 0)
    assert logs and all(np.isfinite(list(logs.values())))
    # The teacher has no batch norms.
    assert 'generator/batch_norm' not in logs
    assert any(
        not torch.equal(a, b) for a, b in zip(before, source.generator.parameters(), strict=True)
    )
    images, _ = source.draw(ITEMS)
    assert images.shape == (7, 3, 16, 16) and torch.isfinite(images).all()


def test_zskt_is_the_divergence_everywhere():
    """Its generator learns from images on which both name different classes, too."""
    small = dict(noise_dims=8, channels=(8, 8, 8), base=4)
    source = PresetGeneratorSource('zskt', generator=small, batch=10)
    (term,) = source.priors
    assert type(term).__name__ == 'DivergencePrior' and not term.masked
    teacher, student = classifier(0), classifier(1)
    ready(source, teacher)
    # A student that never agrees: the masked term would be zero, and so would its gradient.
    with torch.no_grad():
        for sign, net in ((1, teacher.net), (-1, student.net)):
            net.head.layers.head.bias.copy_(torch.tensor([9.0, 0, 0, 0, 0]) * sign)
    before = source.generator.stem.weight.clone()
    assert source.refresh(teacher, student, 0)['generator/divergence'] < -1
    assert not torch.equal(before, source.generator.stem.weight)
    # As in DFQ; the mask came with CMI, and the others have it.
    for preset, masked in dict(dfq=False, fast=True, nayer=True).items():
        (term,) = (p for p in PRESETS[preset]['priors'] if p['type'] == 'mmdfkd.DivergencePrior')
        assert term.get('masked', True) == masked


class TestBadInput:
    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            (dict(every=0), 'every must be at least 1'),
            (dict(meta='maml'), 'fomaml'),
            (dict(meta='fomaml'), 'set bank and share'),
            (dict(share=0.5), 'needs a bank'),
            (dict(noise_lr=0.1), 'hold=True'),
            (dict(labelled=False), 'labelled=True'),
            (dict(codes='text'), 'prototypes'),
        ],
    )
    def test_is_named(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            made(**kwargs)

    def test_no_generator(self):
        with pytest.raises(TypeError, match='mmdfkd.ConvGenerator'):
            made(generator=dict(type='mmdfkd.Lift', in_channels=3, out_channels=3))

    def test_too_few_noisy_layers(self):
        source = made(generator=dict(NET, label_dims=5, noisy_layers=1))
        with pytest.raises(ValueError, match='at least 2'):
            ready(source, classifier(0))

    def test_unknown_preset_and_setting(self):
        with pytest.raises(ValueError, match='dafl'):
            PresetGeneratorSource('gan')
        with pytest.raises(TypeError, match='did you mean'):
            PresetGeneratorSource('dafl', evry=3)

    def test_drawn_before_it_is_prepared(self):
        with pytest.raises(RuntimeError, match='prepare'):
            made().draw(ITEMS)
