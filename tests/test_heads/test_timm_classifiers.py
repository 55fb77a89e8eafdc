"""CaiT and Swin of timm, their own heads included, teach a ViT answers and the manifold."""

import math

import pytest
import torch
import toy
from timm_nets import cait, swin, whole_model

from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.registry import MODELS

TAPS = ['backbone.layers.0', 'backbone.layers.1']
T = 4.0
# Teacher, its taps, their grids, settings of the head: patches meet on 4 x 4 places.
CASES = {
    'cait': (
        cait(24, whole_model),
        ['model.blocks.0', 'model.blocks.2'],
        (4, 4),
        dict(prefix_tokens=(1, 0)),
    ),
    'swin': (
        swin(24, whole_model),
        ['model.layers.0.blocks.0', 'model.layers.1.blocks.0'],
        (8, 4),
        dict(prefix_tokens=(1, 0), channels_last=True, merge=4),
    ),
}


def watched(net, names, inputs, run):
    """Answers of a network, run by its own means, and what its modules give; without gradient."""
    caught = {}
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: caught.__setitem__(name, out.clone())
        )
        for name in names
    ]
    with torch.no_grad():
        logits = run(inputs)
    for handle in handles:
        handle.remove()
    return logits, [caught[name] for name in names]


def places(values, grid):
    """Of each image, its 16 places: neighbourhoods of a ``grid x grid`` map one after the other."""
    side = grid // 4
    rows = values.reshape(len(values), grid, grid, -1)
    return [
        [
            torch.cat([image[side * i + a, side * j + b] for a in range(side) for b in range(side)])
            for i in range(4)
            for j in range(4)
        ]
        for image in rows
    ]


def relations(vectors):
    """Cosines of every two of a list of vectors."""
    return torch.stack(
        [torch.stack([(u @ v) / (u.norm() * v.norm()) for v in vectors]) for u in vectors]
    )


def distance(own, other):
    """The mean square between the relations of two lists of vectors."""
    return float((relations(own) - relations(other)).pow(2).mean())


def manifold(own, other):
    """Three terms of one pair of layers by papers.md eq. 2.1, all patches drawn; means."""
    images, count = len(own), len(own[0])
    intra = sum(distance(own[b], other[b]) for b in range(images)) / images
    inter = sum(distance([x[j] for x in own], [x[j] for x in other]) for j in range(count)) / count
    drawn = distance(sum(own, []), sum(other, []))
    return 4 * intra, 0.1 * inter, 0.2 * drawn


def divergence(own, other):
    """``T^2 mean_b sum_c p_t log(p_t / p_s)``."""
    total = 0.0
    for z_s, z_t in zip(own.tolist(), other.tolist(), strict=True):
        p, q = ([math.exp(v / T) for v in z] for z in (z_t, z_s))
        p, q = ([v / sum(x) for v in x] for x in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return T**2 * total / len(own)


@pytest.mark.parametrize('name', CASES)
def test_two_steps_of_answers_and_manifold_against_their_equations(name):
    torch.manual_seed(0)
    teacher_model, taps, grids, settings = CASES[name]
    student_model = toy.classifier_model(dims=16)
    normalizer = Normalizer.from_config(toy.whole(student_model, 'mmpretrain'))
    teacher = build_adapter(toy.build(teacher_model, 3, 'mmpretrain'), normalizer)
    heads = [
        dict(type='mmdfkd.LogitHead', temperature=T),
        dict(type='mmdfkd.ManifoldHead', taps_student=TAPS, taps_teacher=taps, **settings),
    ]
    net = toy.build(student_model, 1, 'mmpretrain')
    student = Student(net, normalizer, [MODELS.build(head) for head in heads])
    student.build_aligners(teacher, (32, 32))
    assert student.freeze_unused(teacher, (32, 32)) == []
    student.double()
    teacher.net.double()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (toy.MEAN, toy.STD))
    found = []
    for seed in range(2):
        images = toy.images(2, 32, seed).double()
        inputs = (images * 255 - mean) / std
        theirs, maps = watched(teacher.net, taps, inputs, teacher.net.model)
        mine, tokens = watched(net, TAPS, inputs, net)
        pairs = [
            manifold(places(s[:, 1:], 4), places(t, grid))
            for s, t, grid in zip(tokens, maps, grids, strict=True)
        ]
        expected = dict(loss_kl=divergence(mine, theirs))
        for i, key in enumerate(('intra', 'inter', 'random')):
            expected[f'loss_manifold_{key}'] = sum(pair[i] for pair in pairs) / len(pairs)

        needs = student.active_needs
        seen = teacher.observe(images, needs.taps_teacher, needs.teacher_response)
        losses = student(images, seen, Targets())
        assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-9)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert not [n for n, p in student.named_parameters() if p.grad is None]
        assert not any(p.grad is not None for p in teacher.net.parameters())
        optimizer.step()
        found.append(losses)
    assert found[0]['loss_kl'] != found[1]['loss_kl']


def test_heads_without_taps_read_the_pooled_features():
    """Of a CaiT the class token that its classifier sees; only the answers' weights stay idle."""
    model = cait(24, whole_model)
    normalizer = Normalizer.from_config(toy.whole(model, 'mmpretrain'))
    teacher = build_adapter(toy.build(model, 3, 'mmpretrain'), normalizer)
    net = toy.build(toy.classifier_model(dims=24), 1, 'mmpretrain')
    head = MODELS.build(dict(type='mmdfkd.FeatureHead', align='never'))
    student = Student(net, normalizer, [head])
    student.build_aligners(teacher, (32, 32))
    assert student.freeze_unused(teacher, (32, 32)) == ['head']
    assert head.widths == ((24,), (24,))
    images = toy.images(2, 32)
    losses = student(images, teacher.observe(images), Targets())
    inputs = normalizer(images)
    theirs = teacher.net.model.forward_features(inputs)[:, 0].double()
    mine = net.backbone(inputs)[-1].double()
    expected = (mine - theirs).pow(2).mean() / theirs.pow(2).mean()
    assert losses['loss_feature'].item() == pytest.approx(expected.item(), rel=1e-4)
