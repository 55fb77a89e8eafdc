"""How many images go through a network at once."""

import pytest

from mmdfkd.utils.image_count import images_at_once


@pytest.mark.parametrize(
    ('size', 'expected'),
    [((32, 32), 64), ((256, 256), 64), ((128, 512), 64), ((512, 512), 16), ((1024, 1024), 4)],
)
def test_fewer_of_larger_images(size, expected):
    assert images_at_once(64, size) == expected
    assert images_at_once(1, size) == 1
