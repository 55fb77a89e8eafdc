"""The pixels of a dataset follow the run's seed unless it has its own."""

import mmdfkd  # noqa: F401
from mmdfkd.datasets import GlobalIndexSampler, SyntheticDataset

NOISE = dict(type='mmdfkd.NoiseRenderer')


def test_sampler_hands_the_seed_on():
    same, other = (SyntheticDataset(8, NOISE) for _ in range(2))
    GlobalIndexSampler(same, seed=3)
    GlobalIndexSampler(other, seed=4)
    assert (same[0]['image'] == SyntheticDataset(8, NOISE, seed=3)[0]['image']).all()
    assert (same[0]['image'] != other[0]['image']).any()


def test_own_seed_is_kept():
    dataset = SyntheticDataset(8, NOISE, seed=7)
    GlobalIndexSampler(dataset, seed=3)
    assert dataset.seed == 7
