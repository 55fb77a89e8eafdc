"""Layer decay finds the ViT wherever it lies, and never vanishes silently."""

import mmdfkd  # noqa: F401  isort: skip (mends torchvision before mmpretrain imports it)
import pytest
import torch
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmpretrain.models import VisionTransformer
from torch import nn

from mmdfkd.engine.optimizers import LayerDecayOptimWrapperConstructor
from mmdfkd.models import SimpleFPN, ViTDet

ARCH = {
    'embed_dims': 12,
    'num_layers': 3,
    'num_heads': 2,
    'feedforward_channels': 24,
    'global_indices': (2,),
}
WRAPPER = {
    'type': 'OptimWrapper',
    'optimizer': {'type': 'AdamW', 'lr': 1.0, 'weight_decay': 0.1},
}


class Detector(nn.Module):
    """The part of a detector that matters here."""

    def __init__(self):
        super().__init__()
        self.backbone = ViTDet(ARCH, img_size=64, window_size=2, pretrain_img_size=64)
        self.neck = SimpleFPN(12, 8)
        self.rpn_head = nn.Conv2d(8, 4, 1)


class Student(nn.Module):
    """A network below a prefix, with a head beside it."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.heads = nn.ModuleList([nn.Linear(4, 4)])


class Distiller(nn.Module):
    """Two levels of prefix."""

    def __init__(self, net):
        super().__init__()
        self.student = Student(net)


class Wrapper(nn.Module):
    """What DistributedDataParallel does to names."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def build(model, wrapper=WRAPPER, **options):
    # Not the wrapper's groups: mmengine adds one there that holds no parameter.
    return LayerDecayOptimWrapperConstructor(wrapper, options or None)(model).optimizer


def settings(model, **options):
    """Learning rate and weight decay by parameter name; every trainable parameter exactly once."""
    groups = build(model, **options).param_groups
    found = {}
    names = {p: n for n, p in model.named_parameters()}
    for group in groups:
        assert group['lr'] == pytest.approx(group['lr_scale'])
        assert len(group['params']) == len(group['param_names'])
        for p in group['params']:
            assert p not in found
            found[p] = (group['lr'], group['weight_decay'])
    assert set(found) == {p for p in model.parameters() if p.requires_grad}
    return {names[p]: value for p, value in found.items()}


def test_scales_of_vitdet():
    found = settings(Detector(), decay_rate=0.5)
    lr = {name: pytest.approx(value) for name, (value, _) in found.items()}
    assert lr['backbone.patch_embed.proj.weight'] == 0.5**4
    assert lr['backbone.pos_embed'] == 0.5**4
    assert lr['backbone.blocks.0.attn.qkv.weight'] == 0.5**3
    assert lr['backbone.blocks.0.norm1.bias'] == 0.5**3
    assert lr['backbone.blocks.2.attn.rel_pos_h'] == 0.5
    assert lr['neck.fpn1.0.weight'] == 1
    assert lr['rpn_head.bias'] == 1


def test_what_is_not_decayed():
    found = settings(Detector())
    for name, (_, decay) in found.items():
        plain = name.endswith('weight') and 'norm' not in name and '.fpn1.1.' not in name
        assert decay == (0.1 if plain else 0.0), name


@pytest.mark.parametrize('wrap', [Student, Distiller, Wrapper, lambda net: Wrapper(Distiller(net))])
def test_same_scales_under_any_prefix(wrap):
    torch.manual_seed(0)
    plain = settings(Detector())
    net = Detector()
    model = wrap(net)
    names = {p: n for n, p in net.named_parameters()}
    # The constructor strips one level of `module`, as mmengine's own does.
    inner = model.module if isinstance(model, Wrapper) else model
    found = settings(model)
    below = {}
    for name, p in inner.named_parameters():
        full = f'module.{name}' if inner is not model else name
        if p in names:
            below[names[p]] = found[full]
        else:
            assert found[full][0] == 1
    assert below == plain
    assert len({lr for lr, _ in below.values()}) == 5


@pytest.mark.parametrize('prefix', ['', 'backbone'])
def test_scales_of_mmpretrain(prefix):
    arch = {k: v for k, v in ARCH.items() if k != 'global_indices'}
    vit = VisionTransformer(arch, img_size=32, patch_size=16)
    if prefix:
        model = nn.Module()
        model.backbone = vit
        model.head = nn.Linear(12, 5)
        head = {'head.weight': 1, 'head.bias': 1}
        prefix = 'backbone.'
    else:
        model, head = vit, {}
    lr = {name: pytest.approx(value) for name, (value, _) in settings(model).items()}
    assert lr[f'{prefix}cls_token'] == 0.7**4
    assert lr[f'{prefix}pos_embed'] == 0.7**4
    assert lr[f'{prefix}layers.1.ffn.layers.0.0.weight'] == 0.7**2
    assert lr[f'{prefix}ln1.weight'] == 1
    assert {name: lr[name] for name in head} == head


def test_default_rate_applies_without_options():
    rates = {group['lr'] for group in build(Detector()).param_groups}
    assert min(rates) == pytest.approx(0.7**4)


def test_frozen_parameters_are_left_out():
    model = Detector()
    model.backbone.patch_embed.requires_grad_(False)
    found = settings(model)
    assert not any('patch_embed' in name for name in found)


def test_without_a_weight_decay_of_its_own_the_optimiser_keeps_its_default():
    wrapper = {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1.0}}
    groups = build(Detector(), wrapper).param_groups
    assert {group['weight_decay'] for group in groups} == {0.0, 0.01}


def test_no_vit_is_an_error():
    with pytest.raises(ValueError, match='found none'):
        build(nn.Sequential(nn.Linear(3, 3)))


def test_several_vits_must_be_told_apart():
    model = nn.Module()
    model.student, model.generator = Detector(), Detector()
    with pytest.raises(ValueError, match=r'generator\.backbone.*student\.backbone'):
        build(model)
    lr = {n: v for n, (v, _) in settings(model, backbone='student.backbone').items()}
    assert lr['student.backbone.pos_embed'] < 1
    assert lr['generator.backbone.pos_embed'] == 1
    model.generator.requires_grad_(False)  # nothing to choose: only one is trained
    assert settings(model)['student.backbone.pos_embed'][0] < 1
    with pytest.raises(ValueError, match="no plain ViT at 'neck'"):
        build(model, backbone='neck')


def test_wrong_options_are_errors():
    with pytest.raises(ValueError, match=r'num_layers=12.*has 3 blocks'):
        build(Detector(), num_layers=12)
    assert settings(Detector(), num_layers=3)
    with pytest.raises(KeyError, match="did you mean 'decay_rate'"):
        build(Detector(), decay_rat=0.7)


def test_is_registered():
    assert (
        OPTIM_WRAPPER_CONSTRUCTORS.get('mmdfkd.LayerDecayOptimWrapperConstructor')
        is LayerDecayOptimWrapperConstructor
    )
    assert MODELS.get('mmdfkd.ViTDet') is ViTDet
