"""What hooks that look at synthetic images share."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor

from mmdfkd.synthesis.pass_count import uncounted

from .distill import distiller_of


def can_look(runner, who: str) -> bool:
    """Whether a hook that asks the teacher about images has something to do.

    Not in testing; nor where stored labels stand for the teacher, which the log then says.
    """
    if not isinstance(runner._train_loop, BaseLoop):
        return False
    if distiller_of(runner).teacher.replayed:
        runner.logger.info(
            f'{who}: this run has stored labels in the place of its teacher, which cannot be asked '
            'about images. They are not looked at.'
        )
        return False
    return True


@contextmanager
def aside() -> Iterator[None]:
    """Leave no trace in the run: global generators and the count of passes stay as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    states = random.getstate(), np.random.get_state()
    try:
        with uncounted(), torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@torch.no_grad()
def newest_images(runner, data_batch: Mapping, count: int) -> Tensor:
    """Images of this step and, where these are too few, those that the source would draw next.

    A draw is a function of the sample and of the source's state: nothing changes by it. Where the
    source takes its images from the dataset, there are only those of the step.

    Args:
        runner (Runner): Of a distillation run.
        data_batch (Mapping): The step's batch, lists by field.
        count (int): Images wanted.

    Returns:
        Tensor: RGB, uint8, ``[n, 3, H, W]`` on the CPU.
    """
    source = distiller_of(runner).source
    values = zip(*data_batch.values(), strict=True)
    items = [dict(zip(data_batch, value, strict=True)) for value in values]
    size = max(len(items), 1)
    # The samples of this process in the next steps.
    world, rank = get_world_size(), get_rank()
    first = (runner.iter + 1) * size * world + rank
    missing = 0 if source.needs_items else count - len(items)
    items = items[:count] + [dict(g=first + i * world) for i in range(missing)]
    parts = [source.draw(items[i : i + size])[0] for i in range(0, len(items), size)]
    return torch.cat([(part.cpu() * 255).round().to(torch.uint8) for part in parts])
