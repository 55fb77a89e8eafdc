"""DearKD and SiT as configured: both stages of the one, the slimmed student of the other."""

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, DefaultScope
from tiny_runs import ROOT, random_checkpoint

import mmdfkd  # noqa: F401
from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.distillers import build_network
from mmdfkd.evaluation.cost import predict_flops
from mmdfkd.registry import MODELS

DEARKD = 'dearkd/dearkd_resnet18-c16_to_vit128_cifar10'
SIT = 'sit/sit_vit128_to_sit128_cifar10'


def load(name):
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def narrow(name, **backbone):
    """A config with little width: its ViT 32 wide, or as given."""
    cfg = load(name)
    dims = backbone.pop('dims', 32)
    if 'arch' in cfg.model.backbone:
        cfg.model.backbone.arch.update(embed_dims=32, feedforward_channels=32)
    cfg.model.backbone.update(backbone)
    cfg.model.head.in_channels = dims
    return cfg


def prepared(cfg, teacher, student, folder):
    """The distiller of a run before its first step, its optimiser and its data."""
    path = folder / 'teacher.py'
    teacher.dump(path)
    cfg.model.teacher = dict(
        config=str(path), checkpoint=str(random_checkpoint(path, folder / 'teacher.pth'))
    )
    path = folder / 'student.py'
    student.dump(path)
    cfg.model.student.config = str(path)
    cfg.model.inheritance = dict(images=9)
    distiller = MODELS.build(cfg.model)
    distiller.seed, distiller.image_size = 0, (cfg.image_size,) * 2
    distiller.folder = folder
    distiller.init_weights()
    wrapper = build_optim_wrapper(distiller, cfg.optim_wrapper)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    return distiller, wrapper, dataset


def step(distiller, wrapper, dataset, iteration):
    """The log of one step of two images."""
    distiller.iteration = iteration
    items = [dataset[2 * iteration + i] for i in range(2)]
    log = distiller.train_step(pseudo_collate(items), wrapper)
    assert all(torch.isfinite(value).all() for value in log.values())
    return log


def test_dearkd_drops_the_teacher_after_its_first_stage(tmp_path):
    cfg = load(DEARKD)
    stage = cfg.stage
    assert 0 < stage < cfg.max_iters
    cfg.model.source.update(images=4, batch=4, steps=3, checks=1)
    teacher = narrow('dearkd/resnet18-c16_cifar10', base_channels=4, stem_channels=4, dims=32)
    run = prepared(cfg, teacher, narrow('dearkd/vit128_cifar10'), tmp_path)
    distiller = run[0]
    student = distiller.student
    # The priors of its inversion suit a teacher with batch norms and a linear head.
    names = {type(prior).__name__ for prior in distiller.source._used}
    assert {'TargetPrior', 'BatchNormPrior', 'BoundaryPreservingPrior'} <= names

    taps = []
    observe = distiller.teacher.adapter.observe

    def watched(images, wanted, respond, **settings):
        taps.append((tuple(wanted), respond))
        return observe(images, wanted, respond, **settings)

    distiller.teacher.adapter.observe = watched
    aligner = student.heads[1].aligners[0][0].weight
    before = aligner.clone()
    log = step(*run, iteration=stage - 1)
    assert {'loss_token', 'loss_early_feature'} == {n for n in log if n.startswith('loss_')}
    assert not torch.equal(aligner, before)
    log = step(*run, iteration=stage)
    assert {'loss_label_token'} == {n for n in log if n.startswith('loss_')}
    assert taps == [(('backbone.layer2', 'backbone.layer3'), True), ((), False)]
    assert student.active_needs.taps_student == ()
    assert not any(module._forward_hooks for module in student.net.modules())
    # What is trained stays the plain student's and the aligners'.
    assert all(p.grad is None for p in distiller.teacher.net.parameters())


def test_sit_takes_over_its_teacher_and_takes_two_steps(tmp_path):
    cfg = load(SIT)
    cfg.model.source.update(pool_size=4, num_workers=0)
    run = prepared(cfg, narrow('cifar10/vit_cifar10'), narrow('sit/sit128_cifar10'), tmp_path)
    distiller = run[0]
    net, teacher = distiller.student.net, distiller.teacher.net
    assert distiller.inheritance_report.method == 'take_over'
    own = net.state_dict()
    for key, value in teacher.state_dict().items():
        assert torch.equal(own[key], value), key
    head = distiller.student.heads[1]
    assert [isinstance(r, torch.nn.Identity) for r in head.recoveries] == [True] * 2 + [False] * 4
    before = net.backbone.slimming['4'].fc2.weight.clone()
    for iteration in range(2):
        log = step(*run, iteration=iteration)
    assert {'loss_kl', 'loss_ce', 'loss_recalibration'} <= set(log)
    assert not torch.equal(net.backbone.slimming['4'].fc2.weight, before)
    assert not any(key.startswith(('heads', 'recover')) for key in distiller.state_dict())


def test_a_slimmed_student_costs_less():
    cfg = load(SIT)
    networks = [build_network(load(name)) for name in ('sit/sit128_cifar10', 'cifar10/vit_cifar10')]
    assert cfg.model.student.config.endswith('sit128_cifar10.py')
    slimmed, whole = (
        predict_flops(
            build_adapter(net.eval(), Normalizer.from_config(load('cifar10/vit_cifar10'))),
            (32, 32),
            None,
        )
        for net in networks
    )
    assert slimmed / whole == pytest.approx(0.583, abs=0.03)
