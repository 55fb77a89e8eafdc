"""DearKD's early features and SiT's recalibration, between real networks of unlike kinds."""

import pytest
import torch
import toy

from mmdfkd.adapters import Memory, Normalizer, Observation, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.heads import EarlyFeatureHead, RecalibrationHead

IMAGES = toy.images(2, 32)


def cnn():
    """Maps of 32, 16, 8 and 4 px."""
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=toy.MEAN, std=toy.STD, to_rgb=True),
        backbone=dict(type='ResNet_CIFAR', depth=18, stem_channels=6, base_channels=6),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=48),
    )


def slimmed(dims=16, slim_before=(1,), **options):
    model = toy.classifier_model(dims=dims, layers=3)
    arch = model['backbone']['arch']
    model['backbone'] = dict(
        type='mmdfkd.SlimmedViT',
        arch=arch,
        slim_before=slim_before,
        img_size=32,
        patch_size=8,
        **options,
    )
    return model


def pair(student, teacher, heads, size=32):
    """A student as a run builds it, and the teacher's adapter."""
    normalizer = Normalizer.from_config(toy.whole(student, 'mmpretrain'))
    other = build_adapter(toy.build(teacher, scope='mmpretrain'), normalizer)
    net = toy.build(student, seed=1, scope='mmpretrain')
    own = Student(net, normalizer, heads)
    own.build_aligners(other, (size, size))
    return own, other


def observed(student, teacher, images=IMAGES):
    needs = student.active_needs
    return teacher.observe(images, needs.taps_teacher, needs.teacher_response)


def early(**options):
    return EarlyFeatureHead(
        taps_student=['backbone.layers.0', 'backbone.layers.1'],
        taps_teacher=['backbone.layer1', 'backbone.layer3'],
        prefix_tokens=(1, 0),
        **options,
    )


@pytest.mark.parametrize('normalize', [True, False])
def test_early_features_are_those_of_the_map(normalize):
    """Against its equation: aligned patches, resized to maps of 32 and of 8 px."""
    head = early(normalize=normalize)
    student, teacher = pair(toy.classifier_model(dims=16), cnn(), [head])
    student.eval()
    seen = observed(student, teacher)
    loss = student(IMAGES, seen, Targets())['loss_early_feature']
    memory = student.adapter.encode(IMAGES, head.needs.taps_student)
    expected = 0.0
    for i, (own, other) in enumerate(
        zip(memory.taps.values(), seen.memory.taps.values(), strict=True)
    ):
        patches = own[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        patches = torch.nn.functional.interpolate(
            head.aligners[i](patches), size=other.shape[-2:], mode='bilinear'
        )
        error, energy = (patches - other).double().square().mean(), other.double().square().mean()
        expected = expected + (error / energy if normalize else error) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in teacher.net.parameters())
    assert all(p.grad.any() for p in head.parameters())


def test_early_features_end_with_their_stage():
    head = early(schedule=dict(points=[(0, 1), (9, 1), (10, 0)]))
    student, teacher = pair(toy.classifier_model(dims=16), cnn(), [head])
    for iteration, active in ((0, True), (9, True), (10, False), (99, False)):
        head.set_iteration(iteration)
        assert head.active == active
        assert len(student.active_needs.taps_teacher) == len(student.active_needs.taps_student)
        assert bool(student.active_needs.taps_teacher) == active
    losses = student(IMAGES, observed(student, teacher), Targets())
    assert losses == {'loss_idle': 0}


def test_recalibration_is_its_loss_on_recovered_patches():
    """The first layer as it is, the others with their patches given back."""
    head = RecalibrationHead(normalize=False)
    student, teacher = pair(slimmed(), toy.classifier_model(dims=16, layers=3), [head])
    seen = observed(student, teacher)
    loss = student(IMAGES, seen, Targets())['loss_recalibration']
    own = student.adapter.encode(IMAGES, head.needs.taps_student).taps
    assert [v.shape[1] for v in own.values()] == [17, 9, 9]
    expected = 0.0
    for recovery, (name, tokens) in zip(head.recoveries, own.items(), strict=True):
        patches = recovery(tokens[:, 1:])
        assert patches.shape == (2, 16, 16)
        difference = (patches - seen.memory.taps[name][:, 1:]).double()
        expected = expected + difference.square().mean() / 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in teacher.net.parameters())
    assert student.net.backbone.slimming['1'].fc1.weight.grad.any()
    assert all(p.grad.any() for p in head.parameters())


def test_recalibration_of_some_layers_and_of_a_distilled_student():
    head = RecalibrationHead(layers=(2,))
    student = slimmed(slim_before=(1, 2), keep=(0.75, 0.5), distilled=True)
    student['head'] = dict(type='DeiTClsHead', num_classes=5, in_channels=16)
    student, teacher = pair(student, toy.classifier_model(dims=16, layers=3), [head])
    assert student.net.backbone.patches == (16, 12, 6)
    assert head.needs.taps_student == head.needs.taps_teacher == ('backbone.layers.2',)
    with torch.autocast('cpu', torch.bfloat16):
        loss = student(IMAGES, observed(student, teacher), Targets())['loss_recalibration']
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_errors():
    with pytest.raises(ValueError, match='at least one'):
        RecalibrationHead(layers=())
    with pytest.raises(ValueError, match=r'needs a student with mmdfkd\.SlimmedViT'):
        pair(*[toy.classifier_model(dims=16)] * 2, [RecalibrationHead()])
    teacher = toy.classifier_model(dims=16, layers=3)
    with pytest.raises(ValueError, match=r'layers=\(3,\), the student has 3'):
        pair(slimmed(), teacher, [RecalibrationHead(layers=(3,))])
    with pytest.raises(ValueError, match='16 channels in the student and 24 in the teacher'):
        pair(slimmed(), toy.classifier_model(dims=24, layers=3), [RecalibrationHead()])
    student, other = pair(slimmed(), teacher, [RecalibrationHead()])
    images = toy.images(1, 48)
    with pytest.raises(ValueError, match="student's img_size, also model.image_size"):
        student(images, observed(student, other, images), Targets())
    head, memory = RecalibrationHead(), Memory((), (32, 32))
    with pytest.raises(RuntimeError, match='bind and build_aligners'):
        head(Observation(memory), Observation(memory), Targets(), IMAGES)
