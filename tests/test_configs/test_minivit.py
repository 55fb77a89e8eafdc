"""MiniViT as configured: inherited shared weights, and its losses against their equations."""

import itertools
import math

import pytest
import torch
from mmengine.dataset import pseudo_collate
from test_dearkd_sit import load, narrow, prepared

RUN = 'minivit/minivit_vit128_to_mini-vit128_cifar10'
LAST = (1, 3, 5)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def softmax(row):
    exp = [math.exp(v) for v in row]
    return [e / sum(exp) for e in exp]


def divergence(z_s, z_t):
    """``T^2 mean_b KL(p_t || p_s)``, T 4."""
    rows = []
    for s, t in zip(z_s.tolist(), z_t.tolist(), strict=True):
        p, q = (softmax([v / 4 for v in row]) for row in (t, s))
        rows.append(16 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return mean(rows)


def qkv(own, other):
    """``CE(softmax(X_t Y_t' / d^.5), softmax(X_s Y_s' / d^.5))``, mean over X, Y in Q, K, V."""
    found = []
    for s, t in zip(own, other, strict=True):
        parts = [x.chunk(3, -1) for x in (s, t)]
        for i, j in itertools.product(range(3), repeat=2):
            p_s, p_t = (x[i] @ x[j].T / x[i].shape[1] ** 0.5 for x in parts)
            p_s, p_t = p_s.exp(), p_t.exp()
            p_s, p_t = (p / p.sum(1, keepdim=True) for p in (p_s, p_t))
            found.append(float(-(p_t * p_s.log()).sum(1).mean()))
    return mean(found)


def hidden(own, other):
    """``4.9 mean (M_s - M_t)^2``, cosines between the patches of an image."""

    def cosines(x):
        norms = x.pow(2).sum(1).sqrt()
        return x @ x.T / norms[:, None] / norms

    pairs = zip(own[:, 1:], other[:, 1:], strict=True)
    return mean(4.9 * float((cosines(s) - cosines(t)).pow(2).mean()) for s, t in pairs)


def watched(net, names, inputs):
    """Its answers and what the named modules give, in double."""
    caught = {}
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: caught.__setitem__(name, out.double())
        )
        for name in names
    ]
    with torch.no_grad():
        logits = net(inputs).double()
    for handle in handles:
        handle.remove()
    return logits, caught


def test_two_steps_of_the_multiplexed_student(tmp_path):
    cfg = load(RUN)
    cfg.model.source.update(pool_size=4, num_workers=0)
    teacher, student = narrow('cifar10/vit_cifar10'), narrow('minivit/mini-vit128_cifar10')
    distiller, wrapper, dataset = prepared(cfg, teacher, student, tmp_path)
    net, teacher = distiller.student.net, distiller.teacher.net
    assert distiller.inheritance_report.method == 'multiplex' and distiller.frozen == []
    own, their = net.backbone, teacher.backbone
    assert len(own.shared) == 3 and len(own.layers) == len(their.layers) == 6
    # Of two blocks the first; the norms of every one are its own.
    for i, block in enumerate(their.layers):
        assert torch.equal(own.layers[i].ln1.weight, block.ln1.weight)
        if i % 2 == 0:
            assert torch.equal(own.shared[i // 2].qkv.weight, block.attn.qkv.weight)
    before = own.layers[1].mix_logits.clone()
    for iteration in range(2):
        distiller.iteration = iteration
        items = [dataset[2 * iteration + i] for i in range(2)]
        images, _ = distiller.source.draw(items)
        inputs = distiller.student.adapter.normalizer(images)
        net.eval()
        z_s, s = watched(
            net,
            [f'backbone.layers.{i}{part}' for i in LAST for part in ('', '.qkv')],
            inputs,
        )
        z_t, t = watched(
            teacher,
            [f'backbone.layers.{i}{part}' for i in LAST for part in ('', '.attn.qkv')],
            inputs,
        )
        blocks = [f'backbone.layers.{i}' for i in LAST]
        expected = dict(
            loss_kl=divergence(z_s, z_t),
            loss_qkv=mean(qkv(s[f'{b}.qkv'], t[f'{b}.attn.qkv']) for b in blocks),
            loss_hidden_manifold_intra=mean(hidden(s[b], t[b]) for b in blocks),
        )
        net.train()
        log = distiller.train_step(pseudo_collate(items), wrapper)
        found = {k: v.item() for k, v in log.items() if k.startswith('loss_')}
        assert found == pytest.approx(expected, rel=1e-4)
    assert not torch.equal(own.layers[1].mix_logits, before)
