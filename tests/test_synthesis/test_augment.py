"""The light augmentation: one sample at a time, from seed and index alone."""

import pytest
import torch

from mmdfkd.synthesis import LightAugment


@pytest.mark.parametrize('size', [(16, 16), (12, 20)])
def test_depends_on_index_and_seed_only(size):
    images = torch.rand(6, 3, *size)
    augment = LightAugment()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    out = augment(images, 3, range(6))
    assert torch.equal(state, torch.get_rng_state())
    assert out.shape == images.shape
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(out[2:5], augment(images[2:5], 3, [2, 3, 4]))
    assert torch.equal(out[[4]], augment(images[[4]], 3, [4]))
    assert not torch.equal(out, augment(images, 4, range(6)))
    same = augment(images[:1].expand(6, -1, -1, -1), 3, range(6))
    assert len({image.sum().item() for image in same}) == 6


def test_identity_and_exact_flips():
    images = torch.rand(8, 3, 8, 8)
    still = LightAugment(flip=0, turn=0, scale=(1, 1), shift=0, contrast=0, brightness=0)
    torch.testing.assert_close(still(images, 0, range(8)), images, rtol=0, atol=1e-5)
    both = LightAugment(flip=1, turn=0, scale=(1, 1), shift=0, contrast=0, brightness=0)
    torch.testing.assert_close(both(images, 0, range(8)), images.flip(2, 3), rtol=0, atol=1e-5)
    turned = LightAugment(flip=0, turn=1, scale=(1, 1), shift=0, contrast=0, brightness=0)
    torch.testing.assert_close(
        turned(images, 0, range(8)), images.transpose(2, 3), rtol=0, atol=1e-5
    )


def brightest(image):
    """The box around what is bright, of pixels' outer edges; None where nothing is."""
    rows, columns = (image.amax(0).amax(axis).gt(0.5).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return None
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


@pytest.mark.parametrize('size', [(64, 64), (48, 64)])
def test_boxes_follow_the_pixels(size):
    """A painted rectangle is found where its box is said to be: flipped, turned and shifted."""
    box = torch.tensor([22.0, 16.0, 40.0, 28.0])
    image = torch.zeros(1, 3, *size)
    image[..., 16:28, 22:40] = 1
    augment = LightAugment(contrast=0, brightness=0)
    indices = range(40)
    out = augment(image.expand(40, -1, -1, -1), 5, indices)
    boxes, kept = augment.follow([box[None]] * 40, 5, indices, size)
    for one, own, mine in zip(out, boxes, kept, strict=True):
        assert mine.tolist() == [True]
        torch.testing.assert_close(own[0], brightest(one), atol=1.0, rtol=0)
    shapes = {bool(own[0, 2] - own[0, 0] > own[0, 3] - own[0, 1]) for own in boxes}
    assert shapes == ({True, False} if size[0] == size[1] else {True})
    # What is left out of the images is left out of the boxes.
    augment.restrict(dict(horizontal=0, vertical=0, turn=0))
    out = augment(image, 5, [3])
    (own,), _ = augment.follow([box[None]], 5, [3], size)
    torch.testing.assert_close(own[0], brightest(out[0]), atol=1.0, rtol=0)


def test_boxes_end_with_the_image():
    """In a corner: clipped, and without a box where less than half is left."""
    size, box = (64, 64), torch.tensor([0.0, 0.0, 16.0, 16.0])
    image = torch.zeros(1, 3, *size)
    image[..., :16, :16] = 1
    # So that no border is mirrored.
    augment = LightAugment(scale=(1.3, 1.4), shift=0.11, contrast=0, brightness=0)
    out = augment(image.expand(60, -1, -1, -1), 1, range(60))
    boxes, kept = augment.follow([box[None]] * 60, 1, range(60), size)
    clipped = 0
    for g, (one, own, mine) in enumerate(zip(out, boxes, kept, strict=True)):
        zoom = 1 / abs(augment._draw(1, g, True)[0][:, :2]).max()
        share = float(one[0].sum()) / (16 * zoom) ** 2
        assert bool(mine) == (share >= 0.5) or abs(share - 0.5) < 0.05
        if mine:
            torch.testing.assert_close(own[0], brightest(one), atol=1.0, rtol=0)
            assert own.min() >= 0 and own.max() <= 64
            clipped += share < 0.99
        else:
            assert own.shape == (0, 4)
    assert clipped > 5 and not all(mine.all() for mine in kept)
    boxes, kept = augment.follow([torch.zeros(0, 4)], 1, [0], size)
    assert boxes[0].shape == (0, 4) and kept[0].shape == (0,)


def test_bad_scale():
    with pytest.raises(ValueError, match='scale'):
        LightAugment(scale=(1.2, 0.8))
