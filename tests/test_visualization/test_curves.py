import cv2
import pytest

import mmdfkd  # noqa: F401
from mmdfkd.visualization import draw_curves


@pytest.mark.parametrize('count', [1, 20])
def test_curves_are_drawn(tmp_path, count):
    """Also for a component that comes later, and for values below zero."""
    records = [dict(iter=i, loss=100.0 / i, loss_a=-1.0, lr=0.1) for i in range(1, count + 1)]
    records[-1]['loss_b'] = 2.0
    draw_curves(records, tmp_path / 'curves.png')
    image = cv2.imread(str(tmp_path / 'curves.png'))
    assert image.shape[1] > 2 * image.shape[0]
    # Coloured lines in both halves: the total loss and its components.
    colour = image.max(-1).astype(int) - image.min(-1)
    half = image.shape[1] // 2
    assert (colour[:, :half] > 60).any()
    assert (colour[:, half:] > 60).any()


def test_curves_leave_no_figure_behind(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    draw_curves([dict(iter=1, loss=1.0)], tmp_path / 'curves.png')
    assert pyplot.get_fignums() == before
