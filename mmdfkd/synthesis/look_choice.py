"""Which kinds of rendered images a teacher knows most about, asked of the teacher alone."""

from collections.abc import Mapping, Sequence
from math import log

import numpy as np
import torch
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.registry import TASK_UTILS

from .augment import LightAugment

#: Images of each renderer that the teacher is asked about, and views of each.
ASKED, VIEWS = 128, 2
# A renderer of a tenth more information than another is taken seven times as often.
_SHARPNESS = 20.0
#: Indices of these images: no random numbers are shared with images that are drawn.
_OFFSET = 1 << 41


def label_information(votes: Tensor) -> float:
    """How much a teacher's answers say about images of one kind, in [0, 1].

    The mutual information of image and class, ``H(E p) - E H(p)``, in units of ``log classes``: it
    is high where single answers are sure and all classes come up, as they do on what the teacher
    was trained on (the logarithm of the Inception Score: Salimans et al., NeurIPS 2016, there with
    a fixed judge and images to be judged; here the teacher judges what it should be shown). ``p``
    is the mean over views, so that an answer that a small shift overturns is not a sure one.

    Args:
        votes (Tensor): Class probabilities ``[V, N, classes]``, or votes that are not negative.

    Returns:
        float: 0 also where there is no vote at all, or one class only.
    """
    votes = votes.double()
    if votes.shape[-1] < 2 or float(votes.sum()) <= 0:
        return 0.0
    p = votes.mean(0)
    p = p[p.sum(1) > 0]
    p = p / p.sum(1, keepdim=True)
    return float(_entropy(p.mean(0)) - _entropy(p).mean()) / log(votes.shape[-1])


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


@torch.no_grad()
def teacher_shares(
    teacher: Adapter,
    renderers: Sequence[Mapping],
    seed: int,
    size: tuple[int, int],
    device: torch.device | str,
) -> tuple[np.ndarray, list[float]]:
    """How often each of several renderers is to be used for a teacher.

    Args:
        teacher (Adapter): Frozen; asked about :data:`ASKED` images of each, in :data:`VIEWS` views.
        renderers (Sequence[Mapping]): Their configs.
        seed (int): Of the images.
        size (tuple[int, int]): Height and width.
        device (torch.device | str): The teacher's.

    Returns:
        tuple[np.ndarray, list[float]]: Shares ``[R]`` that sum to 1, rising exponentially with the
            :func:`label_information` of each renderer; and that.
    """
    augment = LightAugment(flip=0.0, turn=0.0)
    numbers = [_OFFSET + i for i in range(ASKED)]
    found = []
    for cfg in renderers:
        render = TASK_UTILS.build(dict(cfg))
        images = torch.stack([torch.as_tensor(render(seed, g, size)) for g in numbers])
        images = images.to(device).float() / 255
        views = [
            torch.cat(
                [
                    teacher.class_votes(teacher.encode(part)).float().cpu()
                    for part in augment(
                        images, seed, [_OFFSET * (view + 2) + g for g in numbers]
                    ).split(32)
                ]
            )
            for view in range(VIEWS)
        ]
        found.append(label_information(torch.stack(views)))
    weights = np.exp(_SHARPNESS * (np.array(found) - max(found)))
    return weights / weights.sum(), found
