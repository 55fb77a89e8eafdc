"""Everything that is trained gets a gradient in every step; the rest is frozen and named."""

import pytest
import torch
import toy
from mmengine.registry import MODELS

from mmdfkd.adapters import Targets
from mmdfkd.distillers.student import widths_of


def _distiller(tmp_path, **changes):
    distiller = MODELS.build(toy.run_config(tmp_path, **changes)['model'])
    distiller.teacher.load()
    return distiller


def _step(distiller):
    """Gradients of one step on two images."""
    student = distiller.student.train()
    student.zero_grad()
    images = toy.images(2)
    needs = student.active_needs
    seen = distiller.teacher.observe(images, needs.taps_teacher, needs.teacher_response)
    losses = student(images, seen, Targets())
    sum(losses.values()).backward()
    return losses, {n: p.grad for n, p in student.named_parameters() if p.requires_grad}


def test_every_trained_parameter_gets_a_gradient(tmp_path):
    distiller = _distiller(tmp_path)
    losses, grads = _step(distiller)
    assert set(losses) == {
        'loss_pyramid',
        'loss_rpn_cls',
        'loss_rpn_bbox',
        'loss_roi_cls',
        'loss_roi_bbox',
    }
    assert not [n for n, g in grads.items() if g is None]
    assert any(n.startswith('heads.') for n in grads)
    assert distiller.frozen == []


def test_also_without_any_proposal(tmp_path, monkeypatch):
    distiller = _distiller(tmp_path)
    cfg = distiller.teacher.net.rpn_head.test_cfg
    monkeypatch.setitem(cfg, 'min_bbox_size', 1000)
    losses, grads = _step(distiller)
    assert losses['loss_roi_cls'] == 0 and torch.stack(list(losses.values())).isfinite().all()
    assert not [n for n, g in grads.items() if g is None]


def _mask(tmp_path):
    model = toy.detector_model(mask=True)
    path = tmp_path / 'mask.pth'
    torch.save(toy.build(model).state_dict(), path)
    return dict(config=toy.whole(model), checkpoint=str(path))


@pytest.mark.parametrize(
    ('heads', 'frozen'),
    [
        ([dict(type='mmdfkd.RoIResponseHead')], ['roi_head.mask_head']),
        (
            # Reads the teacher's objectness, but nothing of the student's heads.
            [dict(type='mmdfkd.PyramidHead')],
            ['rpn_head', 'roi_head'],
        ),
        (
            [dict(type='mmdfkd.PyramidHead', levels=[0], floor=1.0)],
            ['neck.', 'rpn_head', 'roi_head'],
        ),
    ],
)
def test_what_no_head_reaches_is_frozen(tmp_path, heads, frozen):
    distiller = _distiller(tmp_path, model_teacher=_mask(tmp_path), model_heads=heads)
    _, grads = _step(distiller)
    assert not [n for n, g in grads.items() if g is None]
    names = [n for n, p in distiller.student.net.named_parameters() if not p.requires_grad]
    assert names and all(n.startswith((*frozen, 'rpn_head')) for n in names)
    covered = [n for n in names if n.startswith(tuple(distiller.frozen))]
    assert covered == names
    for name in frozen:
        if not name.endswith('.'):
            assert name in distiller.frozen


def test_heads_without_a_say_are_not_run(tmp_path, monkeypatch):
    """By schedule: as if their losses were zero. Resting: as if they were not there."""
    late = dict(begin=5, end=9)
    heads = [
        dict(type='mmdfkd.PyramidHead'),
        dict(type='mmdfkd.RPNResponseHead', schedule=late),
        dict(type='mmdfkd.RoIResponseHead', schedule=late),
    ]
    distiller = _distiller(tmp_path, model_heads=heads)
    assert distiller.frozen == []
    student = distiller.student
    asked = []
    answer = student.adapter.answer
    monkeypatch.setattr(
        student.adapter, 'answer', lambda *a: asked.append(1) or answer(*a), raising=True
    )
    # The teacher's objectness is needed still, the student's is not.
    assert student.active_needs.teacher_response and not student.active_needs.response
    losses, grads = _step(distiller)
    assert set(losses) == {'loss_pyramid'} and not asked
    assert not [n for n, g in grads.items() if g is None]
    behind = {n: g for n, g in grads.items() if n.startswith(('net.rpn_head', 'net.roi_head'))}
    assert behind and not any(g.any() for g in behind.values())
    assert all(g.any() for n, g in grads.items() if n.startswith('net.neck'))

    for head in student.heads[1:]:
        head.resting = True
    again, grads = _step(distiller)
    assert torch.equal(again['loss_pyramid'], losses['loss_pyramid'])
    assert all(grads[n] is None for n in behind)

    for head in student.heads:
        head.resting = False
        head.set_iteration(7)
    assert student.active_needs.response
    losses, grads = _step(distiller)
    assert len(losses) == 5 and asked and all(g.any() for n, g in grads.items() if n in behind)


def test_a_step_in_which_no_head_has_a_say(tmp_path):
    late = dict(begin=5, end=9)
    distiller = _distiller(
        tmp_path, model_heads=[dict(type='mmdfkd.PyramidHead', floor=1, schedule=late)]
    )
    losses, grads = _step(distiller)
    assert set(losses) == {'loss_idle'} and losses['loss_idle'] == 0
    assert not any(g.any() for g in grads.values())


def test_freezing_leaves_mode_statistics_and_gradients_alone(tmp_path):
    student = dict(config=toy.whole(toy.resnet_model()), init='random')
    distiller = _distiller(tmp_path, model_student=student)
    assert distiller.student.training
    assert all(p.grad is None for p in distiller.student.parameters())
    means = [b for n, b in distiller.student.named_buffers() if n.endswith('running_mean')]
    assert means and all(b.eq(0).all() for b in means)


def test_aligners_exist_before_weights_do(tmp_path):
    """The optimiser is built before the weights are initialised."""
    distiller = _distiller(tmp_path)
    widths = [m for m in distiller.student.heads[0].aligners if isinstance(m, torch.nn.Conv2d)]
    assert len(widths) == 3
    student, teacher = distiller.student.adapter, distiller.teacher.adapter
    taps = ['backbone.blocks.0']
    mine, theirs = (widths_of(a, taps, (48, 48)) for a in (student, teacher))
    assert mine['neck'] == [8, 8, 8] and theirs['neck'] == [16, 16, 16]
    assert (mine[taps[0]], theirs[taps[0]]) == (16, 32)
    assert student.net.training and not teacher.net.training


def test_two_heads_of_one_kind_need_names(tmp_path):
    heads = [dict(type='mmdfkd.RoIResponseHead')] * 2
    with pytest.raises(KeyError, match="Two distill heads report 'loss_roi_cls'"):
        _distiller(tmp_path, model_heads=heads)
    heads = [heads[0], dict(heads[1], name='second')]
    losses, _ = _step(_distiller(tmp_path, model_heads=heads))
    assert 'loss_second_roi_cls' in losses


def _recomputing_student(with_cp=True):
    """A ResNet of bottlenecks, which recompute as mmdet's do."""
    model = toy.resnet_model()
    model['backbone'].update(depth=50, base_channels=4, with_cp=with_cp)
    model['neck']['in_channels'] = [16, 32, 64]
    return dict(config=toy.whole(model), init='random')


def test_a_student_that_recomputes_its_activations(tmp_path):
    """What no head reaches is the same, its switches stay on, and steps train all of it."""
    heads = [dict(type='mmdfkd.PyramidHead', levels=[0], floor=1.0)]
    plain, spare = (
        _distiller(tmp_path, model_student=_recomputing_student(cp), model_heads=heads)
        for cp in (False, True)
    )
    assert plain.frozen and spare.frozen == plain.frozen
    blocks = list(spare.student.net.backbone.layer1)
    assert blocks and all(block.with_cp for block in blocks)
    _, grads = _step(spare)
    assert not [n for n, g in grads.items() if g is None]


def test_a_balance_tells_where_it_cannot_measure(tmp_path):
    heads = [dict(type='mmdfkd.PyramidHead'), dict(type='mmdfkd.RPNResponseHead')]
    settings = dict(model_student=_recomputing_student(), model_heads=heads)
    wanted = "balance: the gradient of one loss.*'backbone' has with_cp=True.*Set with_cp=False"
    with pytest.raises(ValueError, match=wanted):
        _distiller(tmp_path, **settings, model_balance={})
    # Behind the backbone there is nothing in the way.
    distiller = _distiller(tmp_path, **settings, model_balance=dict(layer='neck.lateral_convs'))
    _step(distiller)
    assert distiller.student.balance.norms.all()
