"""SimKD as the docs configure it: a lifted feature before the teacher's own classifier."""

import torch
import toy
from mmengine.config import Config

from mmdfkd.adapters import Normalizer, Targets, build_adapter
from mmdfkd.distillers import build_network
from mmdfkd.distillers.student import Student
from mmdfkd.registry import MODELS


def test_the_teachers_classifier_is_loaded_and_stays(tmp_path):
    torch.manual_seed(0)
    model = toy.classifier_model(dims=24)
    teacher = toy.build(model, scope='mmpretrain')
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    small = toy.classifier_model(dims=16)
    small['neck'] = dict(type='mmdfkd.Lift', in_channels=16, out_channels=24)
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'teacher.pth'), prefix='head')
    small['head'] = dict(model['head'], init_cfg=init)
    cfg = Config(toy.whole(small, 'mmpretrain'))

    # What a run does with init='config'.
    net = build_network(cfg, keep_init=True)
    net.init_weights()
    own = teacher.head.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in net.head.state_dict().items())
    weight = net.neck.proj.weight
    assert torch.allclose(weight.t() @ weight, torch.eye(16), atol=1e-5)

    normalizer = Normalizer.from_config(cfg)
    heads = [MODELS.build(dict(type='mmdfkd.FeatureHead', align='never'))]
    student = Student(net, normalizer, heads)
    adapter = build_adapter(teacher, normalizer)
    student.build_aligners(adapter, (32, 32))
    assert student.freeze_unused(adapter, (32, 32)) == ['head']
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.01)
    images, losses = toy.images(4, 32), []
    for _ in range(3):
        seen = adapter.observe(images, (), False)
        loss = student(images, seen, Targets())['loss_feature']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, own[key]) for key, value in net.head.state_dict().items())
