"""A run with two teachers, against the equation in float64."""

import pytest
import torch
import toy
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

from mmdfkd.adapters import Targets
from mmdfkd.heads import CoAdviseHead

WEIGHTS, TEMPERATURES = (0.5, 2.0), (3.0, 1.5)


def distilled():
    model = toy.classifier_model()
    model['backbone']['type'] = 'DistilledVisionTransformer'
    model['head']['type'] = 'DeiTClsHead'
    return model


def convolutional(classes=5):
    """A teacher of another inductive bias."""
    model = toy.classifier_model()
    model['backbone'] = dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4)
    model['neck'] = dict(type='GlobalAveragePooling')
    model['head'] = dict(type='LinearClsHead', num_classes=classes, in_channels=32)
    return model


def distiller(folder, extra=True, second=None, **head):
    settings = []
    for i, model in enumerate((toy.classifier_model(), second or convolutional())):
        scope = 'mmpretrain' if model['type'] == 'ImageClassifier' else 'mmdet'
        path = folder / f'teacher{i}.pth'
        torch.save(toy.build(model, seed=i, scope=scope).state_dict(), path)
        settings.append(dict(config=toy.whole(model, scope), checkpoint=str(path)))
    return MODELS.build(
        dict(
            type='mmdfkd.DataFreeDistiller',
            teacher=settings[0],
            extra_teachers=settings[1:] if extra else (),
            student=dict(config=toy.whole(distilled(), 'mmpretrain'), init='random'),
            heads=[
                dict(
                    type='mmdfkd.CoAdviseHead',
                    weights=WEIGHTS,
                    temperatures=TEMPERATURES,
                    class_weight=0.7,
                    **head,
                )
            ],
            source=dict(type='mmdfkd.RenderedSource'),
            image_size=32,
        )
    )


def by_hand(first, second, teachers):
    """The mean's cross-entropy, and each token's divergence from its teacher."""
    first, second, *teachers = (z.detach().double() for z in (first, second, *teachers))
    labels = sum(z.softmax(-1) for z in teachers).argmax(-1)
    logs = ((first + second) / 2).log_softmax(-1)
    total = -0.7 * logs[torch.arange(len(logs)), labels].mean()
    for own, other, weight, tau in zip(
        (first, second), teachers, WEIGHTS, TEMPERATURES, strict=True
    ):
        p, q = (other / tau).softmax(-1), (own / tau).softmax(-1)
        total = total + weight * tau**2 * (p * (p / q).log()).sum(-1).mean()
    return total


def test_both_teachers_are_heard(tmp_path):
    model = distiller(tmp_path)
    for teacher in (model.teacher, *model.extra_teachers):
        teacher.load()
    # As plain attributes: neither is saved nor trained with the student.
    assert not any('teacher' in name for name, _ in model.named_modules())
    toy.randomise(model.student.net, 5)
    model.student.net.eval()
    images = toy.images(4, size=32)
    needs = model.student.active_needs
    seen = model.teacher.observe(images, needs.taps_teacher, needs.teacher_response)
    seen.others = tuple(t.observe(images, (), True) for t in model.extra_teachers)
    (loss,) = model.student(images, seen, Targets()).values()
    head = model.student.net.head
    tokens = head.pre_logits(model.student.adapter.encode(images).feats)
    own = [head.layers.head(tokens[0]), head.layers.head_dist(tokens[1])]
    both = (model.teacher, *model.extra_teachers)
    answers = [t.net.head(t.adapter.encode(images).feats) for t in both]
    torch.testing.assert_close(loss.double(), by_hand(*own, answers), rtol=1e-5, atol=1e-6)
    loss.backward()
    for teacher in (model.teacher, *model.extra_teachers):
        assert all(p.grad is None for p in teacher.net.parameters())
    for part in (head.layers.head, head.layers.head_dist):
        assert part.weight.grad.abs().sum() > 0
    # Where the model goes, all its teachers go.
    model.double()
    assert next(model.extra_teachers[0].net.parameters()).dtype == torch.float64


def test_a_step_asks_both(tmp_path):
    """The distiller's own step, in which nothing is handed over by the test."""
    model = distiller(tmp_path)
    model.seed, model.image_size, model.iteration = 0, (32, 32), 0
    for teacher in (model.teacher, *model.extra_teachers):
        teacher.load()
    asked = []
    second = model.extra_teachers[0]
    observe = second.observe
    second.observe = lambda *args, **kwargs: asked.append(1) or observe(*args, **kwargs)
    wrapper = OptimWrapper(torch.optim.SGD(model.student.parameters(), lr=0.1))
    model.source.prepare(model.teacher.adapter, seed=0, image_size=(32, 32), device='cpu')
    pixels = list((toy.images(2, size=32) * 255).to(torch.uint8))
    log = model.train_step(dict(g=[0, 1], image=pixels), wrapper)
    assert asked == [1] and float(log['loss_advise']) > 0
    # A head that rests asks nobody.
    model.student.heads[0].resting = True
    assert model.student.active_needs.extra_teachers == 0


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match='CoAdviseHead needs 1 more teacher'):
        distiller(tmp_path, extra=False)
    with pytest.raises(
        ValueError, match=r'extra_teachers\[0\] is a classifier .* of 4 classes, .* 5'
    ):
        distiller(tmp_path, second=convolutional(classes=4))
    with pytest.raises(ValueError, match='all teachers must be of one family'):
        distiller(tmp_path, second=toy.detector_model(classes=5))
    with pytest.raises(ValueError, match="not 'mine'"):
        CoAdviseHead(labels='mine')
    with pytest.raises(ValueError, match='must be two each'):
        CoAdviseHead(weights=(1.0,))
    with pytest.raises(ValueError, match='a token for each teacher'):
        CoAdviseHead().bind(toy.build(toy.classifier_model(), scope='mmpretrain'), None)
