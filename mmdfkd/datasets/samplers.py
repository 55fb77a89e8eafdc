from collections.abc import Iterator, Sized

from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from mmdfkd.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class GlobalIndexSampler(Sampler):
    """Yields every sample's global index ``g``, for ever.

    Process ``r`` of ``w`` takes ``r, r + w, r + 2 w, ...``: after any number of steps with any
    batch size, all processes together have taken ``0 .. steps * global_batch - 1``. So step ``t``
    sees the indices ``t * global_batch`` to ``(t + 1) * global_batch - 1``, however many processes
    share them.

    For iteration-based loops. A resumed run calls :meth:`skip` where the loop knows it (OneDL's
    mmengine), which costs nothing; elsewhere (mmengine 0.10.7) the loop draws the past items again
    and arrives at the same index.

    Args:
        dataset (Sized): The dataset.
        seed (int | None): Given by the Runner to every sampler; the order of the indices does not
            depend on it.
    """

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.seed = seed
        # Before the workers get their copies: pixels follow the run's seed.
        if seed is not None and getattr(dataset, 'seed', seed) is None:
            dataset.seed = seed
        self._skipped = 0

    def __iter__(self) -> Iterator[int]:
        g = self._skipped * self.world_size + self.rank
        while True:
            yield g
            g += self.world_size

    def __len__(self) -> int:
        """Samples of this process in a nominal epoch."""
        return max(1, len(self.dataset) // self.world_size)

    def skip(self, num_samples: int) -> None:
        """Start after ``num_samples`` samples of this process, counted from the very first.

        Raises:
            ValueError: If the number is negative.
        """
        if num_samples < 0:
            raise ValueError(f'GlobalIndexSampler: cannot skip {num_samples} samples.')
        self._skipped = num_samples

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes with an epoch; the loops of mmengine call it."""
