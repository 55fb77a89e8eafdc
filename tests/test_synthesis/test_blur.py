"""The Gaussian that smooths gradients, against an independent reference."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from mmdfkd.synthesis.blur import blurred


def test_against_scipy():
    x = np.random.default_rng(0).standard_normal((2, 3, 17, 23))
    expected = gaussian_filter(x, (0, 0, 1.4, 1.4), mode='nearest', radius=(0, 0, 5, 5))
    np.testing.assert_allclose(blurred(torch.from_numpy(x), 1.4).numpy(), expected, atol=1e-12)


def test_small_deviations_change_nothing():
    x = torch.rand(1, 3, 4, 4)
    assert blurred(x, 0.2) is x
