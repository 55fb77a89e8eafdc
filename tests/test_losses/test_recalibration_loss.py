"""Feature recalibration against its equation in Python floats."""

import pytest
import torch

from mmdfkd.losses import feature_recalibration


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def reference(student, teacher, normalize):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        pairs = list(zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
        error = sum((a - b) ** 2 for a, b in pairs)
        total += error / (sum(b * b for _, b in pairs) if normalize else len(pairs))
    return total / len(student)


@pytest.mark.parametrize('normalize', [False, True])
def test_equation(normalize):
    """Layers of unequal width and numbers of patches count alike."""
    torch.manual_seed(0)
    shapes = [(2, 9, 4), (2, 9, 4), (2, 16, 6)]
    student, teacher = [rand(*s) for s in shapes], [3 * rand(*s) for s in shapes]
    loss = feature_recalibration(student, teacher, normalize)
    assert loss.item() == pytest.approx(reference(student, teacher, normalize), rel=1e-12)
    assert feature_recalibration(teacher, teacher, normalize) == 0
    doubled = feature_recalibration(student * 2, teacher * 2, normalize)
    assert torch.isclose(doubled, loss, rtol=1e-12)


def test_normalised_it_ignores_the_scale_of_a_layer():
    torch.manual_seed(0)
    student, teacher = [rand(2, 5, 4) for _ in range(2)], [rand(2, 5, 4) for _ in range(2)]
    scaled = feature_recalibration(
        [student[0], 50 * student[1]], [teacher[0], 50 * teacher[1]], True
    )
    assert torch.isclose(scaled, feature_recalibration(student, teacher, True), rtol=1e-12)


def test_errors():
    with pytest.raises(ValueError, match='not 1 of the student with 2'):
        feature_recalibration([rand(1, 2, 3)], [rand(1, 2, 3)] * 2)
    with pytest.raises(ValueError, match='not 0'):
        feature_recalibration([], [])
    with pytest.raises(ValueError, match='align'):
        feature_recalibration([rand(1, 2, 3)], [rand(1, 4, 3)])
