"""The teacher asked the student's own queries."""

import pytest
import torch
import torch.nn.functional as F
import toy
from test_query_heads import PIXELS, adapter_of, mine, observed, overlap, silent, student_of

from mmdfkd.adapters import Targets

HEAD = dict(type='mmdfkd.StudentQueryHead')
NAMES = tuple(f'loss_student_query_{name}' for name in ('cls', 'l1', 'giou'))


def answers_at(adapter, references):
    """mmdet's own second stage at boxes ``[B, Q, 4]``: logits and boxes of its last layer."""
    net = adapter.net
    encoder = adapter.encoded(adapter.encode(PIXELS.double()))
    made = net.pos_trans_fc(net.get_proposal_pos_embed(references.logit()))
    position, content = net.pos_trans_norm(made).split(net.embed_dims, dim=2)
    outputs = net.forward_decoder(
        query=content,
        query_pos=position,
        memory=encoder.tokens,
        reference_points=references,
        **encoder.decoder,
    )
    logits, boxes = net.bbox_head(**outputs)
    return logits, boxes


def answers_of(adapter, position):
    """mmdet's own DETR at learned positions ``[B, Q, D]``."""
    net = adapter.net
    encoder = adapter.encoded(adapter.encode(PIXELS.double()))
    outputs = net.forward_decoder(
        query=torch.zeros_like(position),
        query_pos=position,
        memory=encoder.tokens,
        **encoder.decoder,
    )
    return net.bbox_head(**outputs)


@pytest.mark.parametrize('floor', [1.0, 0.1])
@pytest.mark.parametrize('kind', ['two-stage', 'detr'])
def test_the_teacher_answers_what_the_student_asks(kind, floor):
    """Boxes and sigmoids; learned positions and a softmax, background last."""
    teacher = adapter_of(kind=kind)
    student = student_of(teacher, [dict(HEAD, floor=floor)], kind=kind, decoder_layers=3)
    if kind == 'detr':
        # Background leads, as in most queries of a trained network.
        teacher.net.bbox_head.fc_cls.bias.data[3] += 4
    teacher.net.double(), student.double()
    pixels = PIXELS.double()
    found = student(pixels, teacher.observe(pixels), Targets())
    assert tuple(found) == NAMES
    with torch.no_grad():
        if kind == 'detr':
            asked = student.net.query_embedding.weight[None].expand(2, -1, -1)
            own, theirs = (answers_of(x, asked) for x in (student.adapter, teacher))
        else:
            memory = student.adapter.encoded(student.adapter.encode(pixels))
            # Its proposals, which mmdet's training hands out, too.
            asked = student.adapter.decoder.own(memory)['reference_points']
            own, theirs = (answers_at(x, asked) for x in (student.adapter, teacher))
    z_t, b_t = (x[-1] for x in theirs)
    p_t = z_t.softmax(-1) if kind == 'detr' else z_t.sigmoid()
    weight = p_t[..., :3].amax(-1)
    cls, l1, away = [], [], []
    for z_s, b_s in zip(*own, strict=True):
        if kind == 'detr':
            kl = p_t * (p_t / z_s.softmax(-1)).log()
        else:
            p_s = z_s.sigmoid()
            kl = p_t * (p_t / p_s).log() + (1 - p_t) * ((1 - p_t) / (1 - p_s)).log()
        share = floor + (1 - floor) * weight
        cls.append((kl.sum(-1) * share).sum() / share.sum())
        l1.append(((b_s - b_t).abs().mean(-1) * weight).sum() / weight.sum())
        away.append(((1 - overlap(b_s, b_t)) * weight).sum() / weight.sum())
    for name, terms, scale in zip(NAMES, (cls, l1, away), (1, 5, 2), strict=True):
        expected = scale * float(torch.stack(terms).mean())
        assert float(found[name].detach()) == pytest.approx(expected, rel=1e-6)


def test_a_second_query_of_an_object_weighs_as_much_as_the_first():
    """What the teacher keeps silent about is what has to be learned: all queries count alike."""
    teacher = silent(adapter_of(model=toy.detr_model('two-stage')))
    student = student_of(teacher, [HEAD], model=toy.detr_model('two-stage'))
    theirs = observed(teacher, student)
    found = student(PIXELS, theirs, Targets())
    logits = mine(student, theirs).response.own.logits.double()
    # -log(1 - p) of every class, a plain mean over layers, images and queries.
    assert float(found[NAMES[0]]) == pytest.approx(
        float(F.softplus(logits).sum(-1).mean()), rel=1e-4
    )


def test_gradients_reach_the_student_alone_and_its_own_queries():
    teacher = adapter_of(model=toy.detr_model('two-stage'))
    student = student_of(teacher, [HEAD], model=toy.detr_model('two-stage'))
    theirs = observed(teacher, student)
    sum(student(PIXELS, theirs, Targets()).values()).backward()
    grads = {name: p.grad for name, p in student.net.named_parameters() if p.grad is not None}
    for part in ('backbone.', 'encoder.', 'decoder.', 'pos_trans_fc', 'bbox_head.cls_branches'):
        assert any(name.startswith(part) and grad.abs().sum() for name, grad in grads.items()), part
    assert all(p.grad is None for p in teacher.net.parameters())


def test_the_same_network_has_nothing_to_learn():
    # Of one layer: a first one follows the last.
    model = toy.detr_model('two-stage', decoder_layers=1)
    teacher = adapter_of(model=model)
    student = student_of(teacher, [HEAD], seed=0, model=model)
    losses = student(PIXELS, observed(teacher, student), Targets())
    cls, l1, giou = (abs(float(losses[name])) for name in NAMES)
    # Random boxes have hardly an area to overlap with.
    assert cls < 1e-6 and l1 < 1e-5 and giou < 1e-2


def test_learned_queries_of_one_width_are_asked_and_of_another_refused():
    teacher = adapter_of()
    fits = student_of(teacher, [HEAD], queries=9)
    found = fits(PIXELS, observed(teacher, fits), Targets())
    assert all(torch.isfinite(value) and value > 0 for value in found.values())
    with pytest.raises(ValueError, match="cannot be asked the student's queries.*Hungarian"):
        student_of(teacher, [HEAD], width=16)(PIXELS, observed(teacher, fits), Targets())
