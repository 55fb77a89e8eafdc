"""Views of scenes: boxes move exactly as the pixels do."""

import numpy as np
import pytest
import torch

from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.synthesis.jitter import SceneJitter

#: No change of colour, so that a rectangle stays what it is.
PLAIN = dict(contrast=0.0, brightness=0.0, noise=0.0)
SIZES = [(64, 64), (48, 96), (96, 40)]


def rngs(count, first=0):
    return [stream('view', 0, first + i) for i in range(count)]


def layouts(size, count, seed=0):
    rng = np.random.default_rng(seed)
    side = np.array(size[::-1])
    boxes = []
    for _ in range(count):
        low = rng.uniform(0, 0.6, (3, 2)) * side
        boxes.append(np.concatenate([low, low + rng.uniform(0.2, 0.4, (3, 2)) * side], 1))
    return [torch.tensor(own, dtype=torch.float32) for own in boxes]


def measured(image, grey):
    """Edges of the one bright rectangle in ``[H, W]``, to a fraction of a pixel."""
    share = (image - grey).clamp_min(0)
    rows, columns = share.amax(1), share.amax(0)
    peak = share.max()

    def edges(profile):
        inside = (profile > 0.999 * peak).nonzero()[:, 0]
        low, high = int(inside[0]), int(inside[-1]) + 1
        # What of the rectangle lies in the half-covered pixels beside.
        return (
            low - float((profile[:low] / peak).sum()),
            high + float((profile[high:] / peak).sum()),
        )

    (y0, y1), (x0, x1) = edges(rows), edges(columns)
    return torch.tensor([x0, y0, x1, y1])


@pytest.mark.parametrize('size', SIZES)
def test_boxes_move_as_the_pixels_do(size):
    h, w = size
    grey = 114 / 255
    box = torch.tensor([[round(0.2 * w), round(0.3 * h), round(0.6 * w), round(0.75 * h)]]).float()
    x0, y0, x1, y1 = box[0].int().tolist()
    images = torch.full((12, 3, h, w), grey)
    images[:, :, y0:y1, x0:x1] = 1.0
    views, moved = SceneJitter(**PLAIN)(images, [box] * 12, rngs(12))
    widths = set()
    for view, own in zip(views, moved, strict=True):
        torch.testing.assert_close(measured(view[0], grey), own[0], atol=0.12, rtol=0)
        widths.add(round(float(own[0, 2] - own[0, 0]), 2))
    assert len(widths) > 8, 'the views differ'


@pytest.mark.parametrize('size', SIZES)
def test_boxes_stay_inside(size):
    boxes = layouts(size, 40)
    # The last ones touch opposite corners: no room for an enlargement.
    boxes[-1] = torch.tensor([[0.0, 0, 9, 9], [size[1] - 9.0, size[0] - 9.0, size[1], size[0]]])
    boxes[-2] = torch.tensor([[0.0, 0, size[1], size[0]]])
    jitter = SceneJitter(zoom=(0.7, 1.6), shift=0.5)
    moved = jitter(torch.rand(40, 3, *size), boxes, rngs(40))[1]
    limit = torch.tensor([size[1], size[0]])
    for own, start in zip(moved, boxes, strict=True):
        assert (own[:, :2] > -1e-3).all() and (own[:, 2:] < limit + 1e-3).all()
        # One zoom for all, in both directions.
        ratio = (own[:, 2:] - own[:, :2]) / (start[:, 2:] - start[:, :2])
        torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-3, atol=0)
        assert 0.69 < float(ratio[0, 0]) < 1.61
    for own in moved[-2:]:
        assert (own[:, 2:].amax(0) - own[:, :2].amin(0) <= limit + 1e-3).all()


def test_shifts_are_bounded():
    """Without a shift the centre stays; else it moves by no more than the share."""
    box = torch.tensor([[28.0, 28, 36, 36]])
    images = torch.rand(30, 3, 64, 64)
    still = SceneJitter(shift=0)(images, [box] * 30, rngs(30))[1]
    moving = SceneJitter(shift=0.1)(images, [box] * 30, rngs(30))[1]
    centres = torch.cat([own.view(2, 2).mean(0, keepdim=True) for own in moving])
    for own in still:
        torch.testing.assert_close(own.view(2, 2).mean(0), torch.tensor([32.0, 32.0]))
    assert (centres - 32).abs().max() <= 6.4 + 1e-3 and (centres - 32).abs().max() > 4


def test_identity():
    jitter = SceneJitter(zoom=(1, 1), shift=0, **PLAIN)
    images, boxes = torch.rand(2, 3, 40, 56), layouts((40, 56), 2)
    views, moved = jitter(images, boxes, rngs(2))
    torch.testing.assert_close(views, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(moved), torch.cat(boxes))


def test_a_view_is_a_function_of_its_generator():
    jitter, images, boxes = SceneJitter(), torch.rand(4, 3, 32, 48), layouts((32, 48), 4)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    views, moved = jitter(images, boxes, rngs(4))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(np_state, np.random.get_state()[1])
    again = jitter(images, boxes, rngs(4))
    assert torch.equal(views, again[0]) and torch.equal(torch.cat(moved), torch.cat(again[1]))
    # Whatever else is in the batch.
    part, part_moved = jitter(images[2:3], boxes[2:3], rngs(1, 2))
    torch.testing.assert_close(part[0], views[2], atol=1e-4, rtol=0)
    assert torch.equal(part_moved[0], moved[2])
    other = jitter(images, boxes, rngs(4, 10))[0]
    assert ((other - views).flatten(1).abs().amax(1) > 0.05).all()


def test_colours_and_noise_change():
    """Each as strong as said; the noise is of single pixels."""
    flat = torch.full((64, 3, 16, 16), 0.7)
    still = dict(zoom=(1, 1), shift=0)
    none = [torch.zeros(0, 4)] * 64
    light = SceneJitter(**still, contrast=0, brightness=0.05, noise=0)(flat, none, rngs(64))[0]
    assert light.flatten(2).std(-1).max() < 1e-5
    assert 0.04 < float((light.mean((2, 3)) - 0.7).std()) < 0.06
    noisy = SceneJitter(**still, contrast=0, brightness=0, noise=0.08)(flat, none, rngs(64))[0]
    spread = (noisy - 0.7).flatten(1).std(1)
    assert spread.max() < 0.09 and spread.min() < 0.02 and spread.max() > 0.05
    contrast = SceneJitter(**still, contrast=0.2, brightness=0, noise=0)(flat, none, rngs(64))[0]
    factor = ((contrast[..., 0, 0] - 114 / 255) / (0.7 - 114 / 255)).log()
    assert 0.16 < float(factor.std()) < 0.24


def test_gradient_flows_to_what_is_seen():
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    boxes = [torch.tensor([[4.0, 4, 20, 20]]), torch.zeros(0, 4)]
    views = SceneJitter()(images, boxes, rngs(2))[0]
    (gradient,) = torch.autograd.grad(views[0].sum(), images)
    assert (gradient[0, :, 6:18, 6:18] > 0).all() and not gradient[1].any()
    small = torch.rand(1, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: SceneJitter()(x, boxes[1:], rngs(1))[0], [small])


def test_an_empty_layout():
    views, moved = SceneJitter()(torch.rand(1, 3, 32, 48), [torch.zeros(0, 4)], rngs(1))
    assert views.shape == (1, 3, 32, 48) and moved[0].shape == (0, 4)
    assert views.isfinite().all()


def test_bad_zoom():
    for zoom in ((0, 1), (1.2, 1.0)):
        with pytest.raises(ValueError, match='zoom'):
            SceneJitter(zoom=zoom)
