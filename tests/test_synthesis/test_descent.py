"""Steps of one length an image, along gradients of several scales."""

import math

import numpy as np
import pytest
import torch

from mmdfkd.synthesis.descent import SmoothDescent


def rms(x):
    return x.square().mean((1, 2, 3)).sqrt()


def grey(count=3, size=(20, 28)):
    return torch.full((count, 3, *size), 0.5, dtype=torch.float64)


def noise(count=3, size=(20, 28), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize('factor', [1.0, 0.3])
def test_every_image_moves_by_the_given_length(factor):
    """Whatever the size of its gradient, its shape and the number of scales; in later steps too."""
    descent = SmoothDescent((0, 1.5, 4), lr=0.02)
    images = grey()
    scale = torch.tensor([1e-9, 1.0, 1e6], dtype=torch.float64)[:, None, None, None]
    for step in range(3):
        before = images.clone()
        descent.step(images, noise(seed=step) * scale, factor)
        torch.testing.assert_close(rms(images - before), torch.full((3,), 0.02 * factor).double())


def test_goes_downhill():
    """A bowl's minimum is approached until the steps are as long as the way."""
    descent, images, goal = SmoothDescent((0, 2), lr=0.01), grey(), grey() + 0.1 * noise().sign()
    start = rms(images - goal)
    for _ in range(8):
        descent.step(images, images - goal)
    assert (rms(images - goal) < start - 0.03).all()


def test_an_image_does_not_depend_on_the_others():
    whole, alone = SmoothDescent((0, 2), lr=0.02), SmoothDescent((0, 2), lr=0.02)
    images, one = grey(), grey(1)
    for step in range(3):
        gradient = noise(seed=step)
        whole.step(images, gradient)
        alone.step(one, gradient[1:2])
    torch.testing.assert_close(images[1:2], one)


def test_stays_within_the_pixel_range():
    images = torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    SmoothDescent((0,), lr=3.0).step(images, torch.randn(2, 3, 8, 8))
    assert images.min() == 0 and images.max() == 1


def test_no_gradient_no_step():
    images = grey()
    gradient = noise()
    gradient[1] = 0
    SmoothDescent((0, 2), lr=0.02).step(images, gradient)
    assert torch.equal(images[1], grey()[1])
    assert not torch.equal(images[0], grey()[0])


def test_momentum_by_hand():
    """Half of the old direction and half of the new, both of unit length."""
    descent, images = SmoothDescent((0,), lr=0.02, momentum=0.5), grey(1)
    first, second = noise(1, seed=1), noise(1, seed=2)
    unit = [g / rms(g) for g in (first, second)]
    descent.step(images, first)
    after = images.clone()
    descent.step(images, second)
    # The running direction was half a unit after the first step.
    move = 0.25 * unit[0] + 0.5 * unit[1]
    torch.testing.assert_close(after - images, 0.02 * move / rms(move))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian cut at three deviations over ``[H, W]`` with repeated edges, place by place."""
    radius = math.ceil(3 * sigma)
    h, w = image.shape
    out = np.zeros_like(image)
    offsets = range(-radius, radius + 1)
    total = sum(math.exp(-(k**2) / (2 * sigma**2)) for k in offsets) ** 2
    for dy in offsets:
        for dx in offsets:
            weight = math.exp(-(dx**2 + dy**2) / (2 * sigma**2)) / total
            rows = np.clip(np.arange(h) + dy, 0, h - 1)
            columns = np.clip(np.arange(w) + dx, 0, w - 1)
            out += weight * image[rows[:, None], columns]
    return out


def test_scales_have_the_same_say():
    """Against a sum of blurs written out; the fine scale is far stronger in the gradient itself."""
    gradient = noise(1, (10, 12))
    images = grey(1, (10, 12))
    SmoothDescent((0.2, 1.2, 2.0), lr=0.05).step(images, gradient)
    raw = gradient[0].numpy()
    parts = [raw, *(np.stack([blur(c, sigma) for c in raw]) for sigma in (1.2, 2.0))]
    assert np.sqrt((parts[2] ** 2).mean()) < 0.25 * np.sqrt((raw**2).mean())
    direction = sum(part / np.sqrt((part**2).mean()) for part in parts)
    expected = 0.5 - 0.05 * direction / np.sqrt((direction**2).mean())
    np.testing.assert_allclose(images[0].numpy(), expected, rtol=1e-10)


def test_where_bounds_the_way_of_each_pixel():
    where = torch.zeros(1, 1, 20, 28, dtype=torch.float64)
    where[..., :10] = 1
    images = grey(1)
    SmoothDescent((0,), lr=0.02).step(images, noise(1), where=where)
    assert torch.equal(images[..., 10:], grey(1)[..., 10:])
    torch.testing.assert_close(rms(images - grey(1)), torch.full((1,), 0.02).double())


def test_bad_arguments():
    with pytest.raises(ValueError, match='scale'):
        SmoothDescent((), lr=0.1)
    with pytest.raises(ValueError, match='momentum'):
        SmoothDescent((1,), lr=0.1, momentum=1.0)
