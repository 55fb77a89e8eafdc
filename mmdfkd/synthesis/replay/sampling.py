"""Weights and draws of the replay bank; nothing here knows images."""

import numpy as np


def recent_weights(count: int, newest: int, share: float) -> np.ndarray:
    """A share of the draws from the newest, the rest from all.

    Args:
        count (int): Number of items, oldest first; at least 1.
        newest (int): How many count as new; all, if there are fewer.
        share (float): From 0 to 1.

    Returns:
        np.ndarray: ``[count]``, sums to 1.
    """
    newest = min(newest, count)
    weights = np.full(count, (1 - share) / count)
    weights[count - newest :] += share / newest
    return weights


def priority_weights(
    values: np.ndarray, ages: np.ndarray, power: float, half_life: float
) -> np.ndarray:
    """``value ** power * 0.5 ** (age / half_life)``, up to a common factor.

    An unknown value counts as the largest known: what was never measured gets its turn (prioritised
    replay, Schaul et al., 2016, §3.3).

    Args:
        values (np.ndarray): At least 0, NaN where unknown, ``[N]``, N at least 1.
        ages (np.ndarray): ``[N]``, in the unit of ``half_life``.
        power (float): 0 leaves the age alone.
        half_life (float): Positive.

    Returns:
        np.ndarray: ``float64 [N]``.
    """
    values = values.astype(np.float64)
    known = values[~np.isnan(values)]
    largest = known.max() if len(known) and known.max() > 0 else 1.0
    values = np.where(np.isnan(values), largest, values) / largest
    # Only ratios matter: count from the youngest, lest all of an old bank round to zero.
    return values**power * 0.5 ** ((ages - ages.min()) / half_life)


def balance(weights: np.ndarray, position: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Give every class the same total, shared within it in proportion to the weights.

    Args:
        weights (np.ndarray): ``[N]``, at least 0.
        position (np.ndarray): Items, ``[P]``; one may have several classes.
        label (np.ndarray): The class of each pair, ``[P]``.

    Returns:
        np.ndarray: ``[N]``.
    """
    _, label = np.unique(label, return_inverse=True)
    part = weights[position]
    total = np.bincount(label, part)[label]
    share = np.divide(part, total, out=np.zeros_like(part), where=total > 0)
    return np.bincount(position, share, minlength=len(weights))


def systematic(rng: np.random.Generator, weights: np.ndarray, n: int) -> np.ndarray:
    """Systematic sampling: one random offset, even steps through the shuffled items.

    The expected number of draws of each item is exact, and none comes twice unless its share
    exceeds ``1 / n``.

    Args:
        rng (np.random.Generator): The only source of chance.
        weights (np.ndarray): ``[N]``, at least 0, not all 0.
        n (int): Number of draws.

    Returns:
        np.ndarray: Items, ``int64 [n]``, in random order.
    """
    order = rng.permutation(len(weights))
    heights = np.cumsum(weights[order])
    at = np.minimum((rng.random() + np.arange(n)) / max(n, 1), np.nextafter(1, 0))
    return order[np.searchsorted(heights / heights[-1], at, 'right')]
