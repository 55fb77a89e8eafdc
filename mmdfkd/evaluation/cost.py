"""What a network costs: parameters, FLOPs of a whole predict, latency on the CPU."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmdfkd.adapters import Adapter, Probe
from mmdfkd.synthesis import frozen

# Kernels of fused attention that torch's counter has no formula for: on a CPU it would count
# nothing at all.
_UNCOUNTED_ATTENTION = (
    '_scaled_dot_product_flash_attention_for_cpu',
    '_scaled_dot_product_fused_attention_overrideable',
)


def count_parameters(net: nn.Module) -> tuple[int, int]:
    """Number of parameters of the network and of its backbone; shared ones count once."""
    backbone = getattr(net, 'backbone', None)
    inner = sum(p.numel() for p in backbone.parameters()) if backbone is not None else 0
    return sum(p.numel() for p in net.parameters()), inner


def attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    """FLOPs of ``softmax(q k^T) v``: two matrix products, two FLOPs a multiply-add.

    Args:
        query: Shape ``[B, heads, N, d]``.
        key: Shape ``[B, heads, M, d]``.
        value: Shape ``[B, heads, M, e]``.
    """
    batch, heads, queries, dims = query
    keys, out_dims = value[-2:]
    return 2 * batch * heads * queries * keys * (dims + out_dims)


def _attention_formulas() -> dict:
    packets = (getattr(torch.ops.aten, name, None) for name in _UNCOUNTED_ATTENTION)
    return {packet: attention_flops for packet in packets if packet is not None}


def count_flops(forward: Callable[[], Any]) -> int:
    """FLOPs of the matrix products, convolutions and attentions of one call.

    Elementwise work is not counted. A multiply-add counts as two FLOPs (papers that count it as
    one give half of these figures).

    Args:
        forward (Callable): Called once, without gradient.
    """
    # The fast path of nn.MultiheadAttention is one opaque kernel that no counter sees into.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False, custom_mapping=_attention_formulas())
        with torch.no_grad(), counter:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return int(counter.get_total_flops())


def proposal_count(net: nn.Module) -> int | None:
    """Proposals per image of a two-stage detector's ``test_cfg``; None for other networks."""
    rpn = getattr(net, 'rpn_head', None)
    if rpn is None or getattr(rpn, 'test_cfg', None) is None:
        return None
    return int(rpn.test_cfg.max_per_img)


def fixed_boxes(count: int, image_size: tuple[int, int]) -> Tensor:
    """``[count, 4]`` equal boxes along the diagonal, xyxy pixels: only their number costs."""
    h, w = image_size
    corner = torch.linspace(0, 0.5, count)[:, None] * torch.tensor([w, h, w, h])
    return corner + torch.tensor([0, 0, w / 4, h / 4])


def predict_flops(adapter: Adapter, image_size: tuple[int, int], proposals: int | None) -> int:
    """FLOPs of one image's whole predict: backbone, neck, and every head, before any suppression.

    Args:
        adapter (Adapter): The network.
        image_size (tuple[int, int]): ``(H, W)`` pixels.
        proposals (int, optional): How many boxes a two-stage detector's RoI head sees; other
            networks have none. Give teacher and student the same number, or the comparison is one
            of their ``test_cfg``.

    Returns:
        int: FLOPs, a multiply-add counted as two.
    """
    device = next(adapter.net.parameters()).device
    image = torch.zeros(1, 3, *image_size, device=device)
    probe = None
    if proposals is not None and proposal_count(adapter.net) is not None:
        boxes = fixed_boxes(proposals, image_size).to(device)
        probe = Probe(boxes=[boxes], scores=[boxes.new_ones(proposals)])
    # The counter follows gradients, and stumbles over a DETR's queries, which are parameters.
    with frozen(adapter.net):
        return count_flops(lambda: adapter.answer(adapter.encode(image), probe))


def interleaved_latency(
    calls: Mapping[str, Callable[[int], Any]], rounds: int = 30, budget: float = 6.0
) -> dict[str, float]:
    """Median time of each call in milliseconds, measured in turn so that all meet the same machine.

    Args:
        calls (Mapping): By name, what to time; each is given the number of the round.
        rounds (int): Timed rounds at most. Defaults to 30.
        budget (float): Stop after this many seconds, once three rounds are timed. Defaults to 6.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    with torch.no_grad():
        for call in calls.values():
            call(0)
        for index in range(rounds):
            if index >= 3 and time.perf_counter() - start > budget:
                break
            for name, call in calls.items():
                begin = time.perf_counter()
                call(index)
                times[name].append(time.perf_counter() - begin)
    return {name: 1000 * median(values) for name, values in times.items()}
