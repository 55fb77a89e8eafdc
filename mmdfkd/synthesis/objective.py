"""What sources that optimise images share: the terms they use, and the classes they ask for."""

from collections.abc import Collection, Iterable, Mapping

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.datasets.renderers.stream import stream

from .automatic import AutomaticPriors
from .priors.base import Prior


def suited_priors(priors: Iterable[Prior], teacher: Adapter, title: str) -> list[Prior]:
    """The priors that suit a teacher; says which are left out, or were chosen, and why.

    Args:
        priors (Iterable[Prior]): All that are configured.
        teacher (Adapter): The teacher.
        title (str): Whose they are, for the log.
    """
    if isinstance(priors, AutomaticPriors):
        priors.choose(teacher, title)
    used = []
    for prior in priors:
        reason = prior.unsuited(teacher)
        if reason is None:
            used.append(prior)
        else:
            print_log(f'{title}: {prior.name} left out: {reason}', 'current')
    return used


def check_suited(used: Collection[Prior], who: str) -> None:
    """Stop where nothing is left that images could be made by.

    Args:
        used (Collection[Prior]): From :func:`suited_priors`.
        who (str): The class they are given to, for the message.

    Raises:
        ValueError: If there are none.
    """
    if not used:
        raise ValueError(
            f'{who}: none of its priors suits the teacher; the log says why of each, and which '
            "would do. priors='auto' takes those that do."
        )


def weighted_names(priors: Iterable[Prior]) -> str:
    """The priors and their weights, for the log."""
    return ', '.join(f'{prior.weight:g} {prior.name}' for prior in priors)


def taps_of(priors: Iterable[Prior], teacher: Adapter) -> tuple[str, ...]:
    """The teacher's modules that the priors look into, each once."""
    return tuple(dict.fromkeys(name for prior in priors for name in prior.taps(teacher)))


def by_image(terms: Mapping[Prior, Tensor], count: int) -> Tensor:
    """The objective of each image ``[count]``; a term of the whole batch counts for every image."""
    return sum((prior.weight * term).expand(count) for prior, term in terms.items())


def check_finite(total: Tensor, terms: Mapping[Prior, Tensor], title: str, step: int) -> None:
    """Stop where an objective is no number.

    Raises:
        FloatingPointError: Names the step and each term.
    """
    if not torch.isfinite(total):
        raise FloatingPointError(
            f'{title}: the objective is {total.item()} at step {step}: '
            + ', '.join(f'{p.name} {t.sum().item()}' for p, t in terms.items())
        )


def balanced_label(purpose: str, seed: int, number: int, classes: int) -> int:
    """The class wanted of an image: every pass over the classes has its own order.

    Args:
        purpose (str): Of the random numbers.
        seed (int): Of the run.
        number (int): Of the image.
        classes (int): How many there are.
    """
    order = stream(purpose, seed, number // classes).permutation(classes)
    return int(order[number % classes])
