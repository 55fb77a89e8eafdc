import copy

import pytest
import torch
from torch import nn

from mmdfkd.utils.key_report import CheckpointMismatchError, check_keys, load_strict


class Backbone(nn.Module):
    def __init__(self, width=4, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))


class Detector(nn.Module):
    def __init__(self, width=4, depth=3):
        super().__init__()
        self.backbone = Backbone(width, depth)
        self.neck = nn.Sequential(nn.Conv2d(width, 2, 1), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 2)
        self.register_buffer('scale', torch.ones(1))


def refusal(net, state_dict, **kwargs):
    """The message of a refused load, after checking that the network is as before."""
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointMismatchError) as error:
        load_strict(net, state_dict, what='teacher t.pth', **kwargs)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    return str(error.value)


def test_fitting_weights_are_loaded():
    source, net = Detector(), Detector()
    report = load_strict(net, source.state_dict(), what='teacher')
    assert report.ok
    assert report.matched == len(source.state_dict())
    assert str(report) == f'teacher: {report.matched} tensors match.'
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in net.state_dict().items())


def test_half_precision_files_are_cast():
    source, net = Detector(), Detector()
    load_strict(net, {k: v.half() for k, v in source.state_dict().items()}, what='teacher')
    assert net.head.weight.dtype == torch.float32
    torch.testing.assert_close(net.head.weight, source.head.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('key', ['backbone.layers.1.bias', 'neck.0.weight', 'head.weight', 'scale'])
def test_one_missing_key_stops(key):
    state = Detector().state_dict()
    del state[key]
    message = refusal(Detector(), state)
    assert '1 missing in the file' in message
    assert key in message
    assert 'teacher t.pth' in message
    assert f'partial: it lacks weights of {key.split(".")[0]}' in message


def test_one_unexpected_key_stops():
    message = refusal(Detector(), {**Detector().state_dict(), 'head.extra': torch.ones(1)})
    assert '1 unexpected in the file' in message
    assert 'head (1): head.extra' in message
    assert 'another config' in message


def test_one_mismatched_shape_stops():
    state = Detector().state_dict()
    state['head.weight'] = torch.ones(5, 2)
    message = refusal(Detector(), state)
    assert 'head.weight [5, 2] in the file, [2, 2] in the network' in message


def test_another_depth_and_width_are_told():
    message = refusal(Detector(), Detector(width=6, depth=5).state_dict())
    assert 'backbone.layers has 5 layers in the file and 3 in the network' in message
    assert 'a width of 6 in the file where the network has 4' in message
    assert '4 unexpected in the file' in message
    # Every part gets a share of the twelve keys that are named of each kind.
    assert 'backbone (6)' in message
    assert 'neck (1)' in message


def test_long_lists_are_cut():
    message = refusal(Detector(depth=30), {'scale': torch.ones(1)})
    assert '68 missing' in message
    assert 'backbone (60)' in message
    assert 'and 56 more' in message
    assert message.count('backbone.layers.') == 4


def test_only_the_key_counts_of_one_part():
    assert 'and' not in refusal(nn.Linear(2, 2), {'weight': torch.ones(2, 2)}).split('Likely')[0]


@pytest.mark.parametrize('prefix', ['module.', 'student.', 'model.student.'])
def test_a_prefix_is_told(prefix):
    message = refusal(Detector(), {prefix + k: v for k, v in Detector().state_dict().items()})
    assert f"carries '{prefix}' in front" in message


def test_a_backbone_alone_is_told():
    message = refusal(Detector(), Detector().backbone.state_dict())
    assert 'missing in the file' in message
    message = refusal(nn.ModuleDict({'backbone': Backbone()}), Backbone().state_dict())
    assert "lack 'backbone.' in front" in message


def test_a_detector_for_a_backbone_is_told():
    message = refusal(Backbone(), Detector().state_dict())
    assert "'backbone.' in front" in message


def test_allow_lists_are_patterns():
    state = Detector().state_dict()
    del state['scale']
    state['head.extra'] = torch.ones(1)
    for missing, unexpected in (('scale', 'head.*'), ('sc.*e', r'head\.ex\w+'), ('s*', '*.extra')):
        report = load_strict(
            Detector(), state, what='t', allow_missing=[missing], allow_unexpected=[unexpected]
        )
        assert report.allowed == ['scale', 'head.extra']
        assert '2 allowed to differ' in str(report)
    refusal(Detector(), state, allow_missing=['cale'], allow_unexpected=['head.*'])
    # Allowed to lack, not to be of another shape.
    state['scale'] = torch.ones(3)
    refusal(Detector(), state, allow_missing=['scale'], allow_unexpected=['*'])


def test_batch_counters_may_lack():
    state = Detector().state_dict()
    del state['neck.1.num_batches_tracked']
    assert load_strict(Detector(), state, what='t').allowed == ['neck.1.num_batches_tracked']


def test_check_keys_alone_touches_nothing():
    state = Detector().state_dict()
    assert check_keys(state, state, what='t').matched == len(state)
    with pytest.raises(CheckpointMismatchError):
        check_keys(state, {}, what='t')


def test_a_wrapped_network_is_loaded_inside():
    from mmengine.model import MMDistributedDataParallel
    from mmengine.registry import MODEL_WRAPPERS

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    assert MMDistributedDataParallel in MODEL_WRAPPERS.module_dict.values()
    MODEL_WRAPPERS.register_module('_TestWrapper', module=Wrapper)
    try:
        source, net = Detector(), Wrapper(Detector())
        load_strict(net, source.state_dict(), what='t')
        assert torch.equal(net.module.scale, source.scale)
    finally:
        del MODEL_WRAPPERS.module_dict['_TestWrapper']
