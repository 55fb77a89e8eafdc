"""Factors at chosen iterations, worked out by hand."""

import pytest

from mmdfkd.heads.schedule import read_schedule


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        (dict(begin=10, end=20), {0: 0, 10: 0, 15: 0.5, 20: 1, 99: 1}),
        (dict(begin=0, end=8, start=2, stop=1, shape='cosine'), {0: 2, 2: 1.8535534, 4: 1.5, 8: 1}),
        (
            dict(points=[(0, 0), (10, 1), (50, 1), (60, 0.5)]),
            {0: 0, 5: 0.5, 10: 1, 30: 1, 55: 0.75, 60: 0.5, 99: 0.5},
        ),
        (dict(points=[(4, 3), (8, 1)], shape='cosine'), {0: 3, 4: 3, 5: 2.7071068, 6: 2, 8: 1}),
    ],
)
def test_factors(config, expected):
    schedule = read_schedule(config, 'X')
    for iteration, factor in expected.items():
        assert schedule.at(iteration) == pytest.approx(factor, abs=1e-6), iteration


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(points=[(0, 1)]), 'two or more points'),
        (dict(points=[(5, 1), (5, 2)]), 'ascending'),
        (dict(points=[(-5, 1), (5, 2)]), 'begins at iteration -5'),
        (dict(points=[(0, 1), (5, 2)], end=5), 'takes points and optionally shape, but has'),
        (dict(begin=0, end=5, shape='steps'), "shape 'steps'"),
    ],
)
def test_bad_schedules(config, message):
    with pytest.raises(ValueError, match=message):
        read_schedule(config, 'X')
