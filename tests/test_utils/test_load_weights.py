"""What is tested is loaded whole or not at all, from files of other libraries, too."""

import copy

import pytest
import torch
import toy
from timm.models.vision_transformer import VisionTransformer

from mmdfkd.utils.key_report import CheckpointMismatchError
from mmdfkd.utils.load_weights import load_to_test, read_weights

MODEL = toy.classifier_model()


@pytest.fixture
def net():
    return toy.randomise(toy.plain(MODEL, 'mmpretrain'), 1)


@pytest.fixture
def save(tmp_path):
    def write(state):
        torch.save(dict(state_dict=state), tmp_path / 'file.pth')
        return tmp_path / 'file.pth'

    return write


def same(net, state):
    return all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_all_of_it(net, save):
    other = toy.randomise(copy.deepcopy(net), 2)
    wrapped = {f'module.{key}': value for key, value in other.state_dict().items()}
    for state in (other.state_dict(), wrapped, dict(other.state_dict(), ema_steps=torch.ones(1))):
        toy.randomise(net, 1)
        assert load_to_test(net, save(state))
        assert same(net, other.state_dict())


def test_another_librarys_names(net, save):
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2)
    peer = toy.randomise(VisionTransformer(**sizes, num_classes=5), 3).eval()
    path = save(peer.state_dict())
    assert not load_to_test(net, path)
    assert set(read_weights(path, net)) == set(net.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
    with torch.no_grad():
        found = net.eval().head(net.extract_feat(images))
        torch.testing.assert_close(found, peer(images), rtol=0, atol=1e-4)


def test_what_is_missing_or_of_another_shape(net, save):
    state = net.state_dict()
    key = 'backbone.layers.1.ffn.layers.0.0.weight'
    lost = {k: v for k, v in state.items() if k != key}
    wide = toy.plain(toy.classifier_model(dims=32), 'mmpretrain').state_dict()
    for wrong, words in (
        (lost, (key, 'the file is partial')),
        ({f'model.net.{k}': v for k, v in state.items()}, ("carries 'model.net.' in front",)),
        (wide, ('a width of 32 in the file where the network has 24',)),
    ):
        path = save(wrong)
        with pytest.raises(CheckpointMismatchError) as error:
            load_to_test(net, path)
        for word in (str(path), 'do not fit the network', *words):
            assert word in str(error.value)


def test_what_a_loading_hook_converts_fits(save):
    """mmpretrain gives embeddings of positions another size."""
    small, large = copy.deepcopy(MODEL), copy.deepcopy(MODEL)
    large['backbone']['img_size'] = 64
    state = toy.randomise(toy.plain(small, 'mmpretrain'), 1).state_dict()
    net = toy.plain(large, 'mmpretrain')
    assert load_to_test(net, save(state))
    assert net.backbone.pos_embed.shape[1] == 65
    assert torch.equal(net.head.layers.head.weight, state['head.layers.head.weight'])


def test_running_statistics_are_needed_and_counters_are_not(save):
    net = toy.plain(dict(type='ResNet', depth=18))
    state = net.state_dict()
    counted = {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}
    assert load_to_test(net, save(counted)) and len(counted) < len(state)
    counted.pop(next(k for k in counted if k.endswith('running_var')))
    with pytest.raises(CheckpointMismatchError, match='running_var'):
        load_to_test(net, save(counted))


def test_a_distillers_student(tmp_path, save):
    cfg = toy.run_config(tmp_path)
    distiller = toy.runner_of(cfg).model
    state = {k: torch.ones_like(v) for k, v in distiller.student.net.state_dict().items()}
    assert load_to_test(distiller, save(state))
    assert same(distiller.student.net, state)
    state.popitem()
    path = save(state)
    with pytest.raises(CheckpointMismatchError, match=rf'{path}: student: the weights do not fit'):
        load_to_test(distiller, path)
