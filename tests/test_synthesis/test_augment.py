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


def test_bad_scale():
    with pytest.raises(ValueError, match='scale'):
        LightAugment(scale=(1.2, 0.8))
