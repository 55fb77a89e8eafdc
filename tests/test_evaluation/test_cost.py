import time

import pytest
import torch
import toy
from torch import nn
from torch.nn import functional

import mmdfkd  # noqa: F401
from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.evaluation.cost import (
    count_flops,
    count_parameters,
    fixed_boxes,
    interleaved_latency,
    predict_flops,
    proposal_count,
)
from mmdfkd.models import ViTDet


@pytest.mark.parametrize('mask', [False, True])
def test_fused_attention_is_counted(mask):
    """Two products of 4 queries with 6 keys, in 2 heads of 8 channels, for 3 images."""
    q, k, v = torch.rand(3, 2, 4, 8), torch.rand(3, 2, 6, 8), torch.rand(3, 2, 6, 8)
    bias = torch.rand(3, 2, 4, 6) if mask else None

    def attend():
        functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    assert count_flops(attend) == 2 * (3 * 2 * 4 * 6 * 8) * 2


def test_torch_attention_module_is_counted():
    """Its fast path is one kernel that hides everything."""
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.rand(1, 5, 16)
    projections = 4 * 5 * 16 * 16
    products = 2 * 5 * 5 * 16
    assert count_flops(lambda: attention(x, x, x)) == 2 * (projections + products)
    assert torch.backends.mha.get_fastpath_enabled()


def test_linear_and_convolution():
    layer, conv = nn.Linear(3, 5), nn.Conv2d(3, 4, 3, padding=1)
    assert count_flops(lambda: layer(torch.rand(7, 3))) == 2 * 7 * 3 * 5
    assert count_flops(lambda: conv(torch.rand(1, 3, 6, 6))) == 2 * 6 * 6 * 4 * 3 * 9


@pytest.mark.parametrize('rel_pos', [False, True])
def test_small_vitdet_by_hand(rel_pos):
    """One window block (4 windows of 2 x 2) and one global block on 4 x 4 tokens."""
    dims, heads, hidden, tokens = 8, 2, 12, 16
    net = ViTDet(
        arch=dict(
            embed_dims=dims,
            num_layers=2,
            num_heads=heads,
            feedforward_channels=hidden,
            global_indices=(1,),
        ),
        img_size=64,
        window_size=2,
        pretrain_img_size=64,
        pretrain_use_cls_token=False,
        use_rel_pos=rel_pos,
    ).eval()
    patches = tokens * 3 * 16 * 16 * dims
    linear = 2 * tokens * (3 * dims * dims + dims * dims + 2 * dims * hidden)
    window, whole = 2 * tokens * 4 * dims, 2 * tokens * tokens * dims
    # Each query meets the rows and the columns of its map.
    relative = tokens * dims * (2 + 2) + tokens * dims * (4 + 4) if rel_pos else 0
    expected = 2 * (patches + linear + window + whole + relative)
    assert count_flops(lambda: net(torch.rand(1, 3, 64, 64))) == expected


def test_parameters_of_whole_and_backbone():
    net = nn.Module()
    net.backbone = nn.Linear(3, 4)
    net.head = nn.Linear(4, 2)
    # Shared: counted once.
    net.tied = net.head
    assert count_parameters(net) == (3 * 4 + 4 + 4 * 2 + 2, 3 * 4 + 4)
    assert count_parameters(nn.Linear(1, 1)) == (2, 0)


@pytest.mark.parametrize('count', [1, 50])
def test_fixed_boxes_lie_in_the_image(count):
    boxes = fixed_boxes(count, (40, 80))
    assert boxes.shape == (count, 4)
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes[:, 2].max() <= 80
    assert boxes[:, 3].max() <= 40


def test_only_two_stage_detectors_are_given_proposals():
    """A DETR's own queries are what it predicts with, whatever its rival has."""
    two_stage, one_stage = (
        build_adapter(toy.build(model), Normalizer.from_config(toy.whole(model)))
        for model in (toy.detector_model(), toy.detr_model())
    )
    assert proposal_count(one_stage.net) is None
    few, many = (predict_flops(two_stage, (64, 64), n) for n in (10, 100))
    assert few < many
    alone = predict_flops(one_stage, (64, 64), None)
    assert predict_flops(one_stage, (64, 64), 100) == alone


def test_latency_is_the_median_and_takes_turns():
    order = []

    def slow(index):
        order.append('slow')
        # One stray pause must not show.
        time.sleep(0.5 if index == 1 else 0.02)

    def fast(index):
        order.append('fast')

    latency = interleaved_latency(dict(slow=slow, fast=fast), rounds=5, budget=60)
    assert order == ['slow', 'fast'] * 6
    assert 20 <= latency['slow'] < 400
    assert latency['fast'] < latency['slow']


def test_latency_keeps_to_its_budget():
    rounds = []
    interleaved_latency(dict(only=lambda index: rounds.append(index)), rounds=100, budget=0)
    assert rounds == [0, 0, 1, 2]
