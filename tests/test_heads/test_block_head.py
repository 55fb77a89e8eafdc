"""Each block of an inherited student learns alone, from the teacher's own tokens."""

import copy

import pytest
import torch
import toy

from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.distillers.student import Student
from mmdfkd.heads import BlockHead, PyramidHead
from mmdfkd.inheritance import inherit, shrink_config

MODELS = {
    'mmdet': lambda layers: toy.detector_model(layers=layers),
    'mmpretrain': lambda layers: toy.classifier_model(layers=layers),
}
SIZES = {'mmdet': 48, 'mmpretrain': 32}
BLOCKS = {'mmdet': 'blocks', 'mmpretrain': 'layers'}


def networks(scope, width=0.5, depth=0.5, layers=4, method='slice', dtype=torch.float64):
    """Teacher, student with its head, what was inherited, and images."""
    cfg = toy.whole(MODELS[scope](layers), scope)
    normalizer = Normalizer.from_config(cfg)
    teacher = build_adapter(toy.build(cfg['model'], scope=scope), normalizer)
    net = toy.build(shrink_config(cfg, width, depth), seed=1, scope=scope)
    head = BlockHead()
    student = Student(net, normalizer, [head]).eval()
    student.build_aligners(teacher, (SIZES[scope],) * 2)
    teacher.net.to(dtype)
    student.to(dtype)
    images = toy.images(16, SIZES[scope]).to(dtype)
    report = inherit(teacher, student.adapter, images, method)
    head.start_from(report)
    return teacher, student, report, images[:3]


def loss_of(teacher, student, images):
    needs = student.active_needs
    seen = teacher.observe(images, needs.taps_teacher, needs.teacher_response)
    return student(images, seen, Targets())['loss_block']


def embed(scope, net, images, normalizer):
    """Tokens before the first block, after the papers."""
    backbone, x = net.backbone, normalizer(images)
    if scope == 'mmdet':
        tokens = backbone.patch_embed.proj(x).permute(0, 2, 3, 1)
        return tokens + backbone.pos_embed.view(1, 3, 3, -1)
    patches = backbone.patch_embed.projection(x).flatten(2).transpose(1, 2)
    token = backbone.cls_token.expand(len(x), -1, -1)
    return torch.cat([token, patches], 1) + backbone.pos_embed


def blocks_of(scope, net):
    return getattr(net.backbone, BLOCKS[scope])


@pytest.mark.parametrize('method', ['slice', 'select'])
@pytest.mark.parametrize('scope', MODELS)
def test_equals_the_reference(scope, method):
    """Block by block, with the teacher's stream through the student's own embedding map."""
    teacher, student, report, images = networks(scope, method=method)
    assert len(report.layers) == 2
    with torch.no_grad():
        streams = [embed(scope, teacher.net, images, teacher.normalizer)]
        own = embed(scope, student.net, images, teacher.normalizer)
        for block in blocks_of(scope, teacher.net):
            streams.append(block(streams[-1]))
    write = student.heads[0].write
    # What the first block is given is what it really gets: the map is the student's own.
    torch.testing.assert_close(streams[0] @ write.t(), own)
    # Its group ends where the second one's block begins; that one's ends with the teacher.
    bounds = [0, report.layers[1], 4]
    expected = []
    for j, block in enumerate(blocks_of(scope, student.net)):
        entry, goal = (streams[i] @ write.t() for i in bounds[j : j + 2])
        error = (block(entry) - goal).square().sum()
        expected.append(error / (goal - entry).square().sum())
    loss = loss_of(teacher, student, images)
    torch.testing.assert_close(loss, sum(expected) / 2)
    assert loss > 1e-3


@pytest.mark.parametrize('scope', MODELS)
def test_a_copy_of_the_teacher_has_nothing_to_learn(scope):
    teacher, student, report, images = networks(scope, width=1.0, depth=1.0, layers=2)
    assert report.layers == [0, 1]
    assert loss_of(teacher, student, images) < 1e-20
    # A block that writes nothing misses all that there is to write.
    with torch.no_grad():
        for name, parameter in student.net.backbone.named_parameters():
            if any(part in name for part in ('.attn.proj.', '.fc2.', '.ffn.layers.1.')):
                parameter.zero_()
    torch.testing.assert_close(
        loss_of(teacher, student, images), torch.tensor(1.0, dtype=torch.float64)
    )


@pytest.mark.parametrize('scope', MODELS)
def test_gradients_stay_in_their_block(scope):
    """Whatever the other block is: neither its loss nor its output reaches this one."""
    teacher, student, _, images = networks(scope)

    def gradients():
        student.zero_grad()
        loss_of(teacher, student, images).backward()
        return [
            [p.grad.clone() for p in block.parameters()] for block in blocks_of(scope, student.net)
        ]

    before = gradients()
    assert all(any(g.any() for g in block) for block in before)
    inside = {id(p) for block in blocks_of(scope, student.net) for p in block.parameters()}
    assert all(p.grad is None for p in student.parameters() if id(p) not in inside)
    assert all(p.grad is None for p in teacher.net.parameters())
    for k in (0, 1):
        changed = blocks_of(scope, student.net)[k]
        kept = copy.deepcopy(changed.state_dict())
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.add_(torch.randn_like(parameter))
        after = gradients()
        assert any(not torch.equal(a, b) for a, b in zip(before[k], after[k], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before[1 - k], after[1 - k], strict=True))
        changed.load_state_dict(kept)


def test_what_it_does_not_reach_is_frozen():
    teacher, student, _, _ = networks('mmdet', dtype=torch.float32)
    frozen = student.freeze_unused(teacher, (48, 48))
    assert frozen == [
        'backbone.patch_embed',
        'backbone.pos_embed',
        'neck',
        'rpn_head',
        'roi_head',
    ]


def test_the_head_holds_none_of_the_student():
    teacher, student, report, images = networks('mmdet', dtype=torch.float32)
    head = student.heads[0]
    assert set(head.state_dict()) == {'layers', 'write'}
    assert not list(head.parameters()) and not list(head.children())
    # A copy of the whole has the copy's blocks, not these.
    twin = copy.deepcopy(student)
    loss_of(teacher, twin, images).backward()
    assert all(p.grad is None for p in student.parameters())
    # A resumed run knows from the checkpoint alone where the groups begin.
    fresh = Student(student.net, student.adapter.normalizer, [BlockHead()])
    fresh.build_aligners(teacher, (48, 48))
    fresh.heads.load_state_dict(student.heads.state_dict())
    assert fresh.needs == student.needs
    assert fresh.needs.taps_teacher == (
        'backbone.blocks.0:input',
        f'backbone.blocks.{report.layers[1] - 1}',
        'backbone.blocks.3',
    )
    assert torch.equal(loss_of(teacher, fresh, images), loss_of(teacher, student, images))


@pytest.mark.parametrize('scope', MODELS)
def test_it_can_be_learned(scope):
    teacher, student, _, images = networks(scope)
    optimiser = torch.optim.Adam(blocks_of(scope, student.net).parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = loss_of(teacher, student, images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_half_precision_stays_finite():
    teacher, student, _, images = networks('mmdet', dtype=torch.float32)
    exact = loss_of(teacher, student, images)
    with torch.autocast('cpu', torch.bfloat16):
        loss = loss_of(teacher, student, images)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)
    trained = student.net.backbone.blocks.parameters()
    assert all(p.grad.isfinite().all() for p in trained)


def test_a_student_that_was_not_inherited_is_refused():
    head = BlockHead()
    with pytest.raises(RuntimeError, match='bind has to be called'):
        head.losses(None, None, Targets(), torch.zeros(1, 3, 8, 8))
    net = toy.build(toy.detector_model())
    head.bind(net, net)
    with pytest.raises(ValueError, match="init='inherit'"):
        head.fit_aligners(None, None)
    resnet = toy.build(toy.resnet_model())
    with pytest.raises(ValueError, match='does not support the backbone ResNet'):
        BlockHead().bind(resnet, net)
    # A head that needs nothing of the kind takes no notice.
    PyramidHead().bind(resnet, net)
