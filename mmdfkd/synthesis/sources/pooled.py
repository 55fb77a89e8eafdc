import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.datasets.synthetic import SyntheticDataset
from mmdfkd.registry import MODELS, TASK_UTILS
from mmdfkd.utils.memory import check_memory
from mmdfkd.utils.opencv import single_threaded_opencv

from ..frozen import frozen
from ..look_choice import teacher_shares
from ..symmetry import ASKED, held_symmetries
from .base import SyntheticSource


@MODELS.register_module()
class PooledSource(SyntheticSource):
    """A pool of rendered images that the teacher scores once and that is drawn class-balanced.

    A teacher sees some classes in random images far more often than others. So a draw first picks a
    class, uniformly, and then an image in proportion to the teacher's vote for this class. The pool
    and its votes follow from seed, config and teacher, and are made again by a resumed run. A
    classifier's images are flipped and turned as far as its surest ones keep their class.

    Given several renderers, the teacher chooses how often each is used: those on whose images its
    answers carry most information (:func:`~mmdfkd.synthesis.look_choice.teacher_shares`).

    Args:
        renderer (Mapping | Sequence[Mapping]): Config of the renderer, or of several.
        pool_size (int): Number of images.
        balance (bool): Whether to score the pool and draw by the votes; else every draw is uniform.
        uniform (float): Share of draws that ignore the votes, so that no image is lost.
        power (float): Votes are raised to it: above 1 prefers the surest images, below 1 evens them
            out.
        least_vote (float): A class counts as covered if some image has at least this vote for it,
            or, of many classes, ten or ``1.5 / least_vote`` such votes shared out among them: votes
            sum to about 1. Only covered classes are picked.
        augment (Mapping | None): Config of the augmentation of every draw; None turns it off.
        batch_size (int): Images that the teacher scores at once.
        num_workers (int): Processes that render; 0 renders in this one. The pixels do not depend on
            it.
        max_bytes (int): A pool that needs more memory is refused.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        renderer: Mapping | Sequence[Mapping],
        pool_size: int,
        balance: bool = True,
        uniform: float = 0.2,
        power: float = 2.0,
        least_vote: float = 0.05,
        augment: Mapping | None = dict(type='mmdfkd.LightAugment'),
        batch_size: int = 32,
        num_workers: int = 2,
        max_bytes: int = 2 << 30,
    ) -> None:
        super().__init__()
        if pool_size < 1:
            raise ValueError(f'PooledSource: pool_size must be at least 1, got {pool_size}.')
        if not 0 <= uniform <= 1:
            raise ValueError(f'PooledSource: uniform is a share, from 0 to 1, got {uniform}.')
        self.renderer = (
            dict(renderer) if isinstance(renderer, Mapping) else [dict(one) for one in renderer]
        )
        if not self.renderer:
            raise ValueError(f'PooledSource: needs a renderer, got {renderer!r}.')
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                'PooledSource: batch_size must be at least 1 and num_workers at least 0, got '
                f'{batch_size} and {num_workers}.'
            )
        for one in [self.renderer] if isinstance(self.renderer, dict) else self.renderer:
            # It is built where it renders; what it does not know is refused here.
            TASK_UTILS.build(one)
        self.pool_size = pool_size
        self.balance = balance
        self.uniform = uniform
        self.power = power
        self.least_vote = least_vote
        self.augment = None if augment is None else TASK_UTILS.build(augment)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.max_bytes = max_bytes
        # Plain attributes: they are made again, not saved.
        self.pool: Tensor | None = None
        self.votes: np.ndarray | None = None
        self.covered = np.zeros(0, np.int64)

    @property
    def self_contained(self) -> bool:
        """Not where the teacher scores the pool, or chooses among renderers."""
        return not self.balance and isinstance(self.renderer, dict)

    def prepare(
        self,
        teacher: Adapter,
        *,
        seed: int,
        image_size: tuple[int, int],
        device: torch.device | str,
    ) -> None:
        """Render the pool and have it scored; progress is logged.

        Raises:
            ValueError: If the pool would not fit into ``max_bytes``, or into memory.
        """
        super().prepare(teacher, seed=seed, image_size=image_size, device=device)
        need = self.pool_size * 3 * self.image_size[0] * self.image_size[1]
        if need > self.max_bytes:
            raise ValueError(
                f'PooledSource: {self.pool_size} images of {self.image_size[0]} x '
                f'{self.image_size[1]} px need {need / 2**30:.1f} GiB, more than max_bytes allows '
                f'({self.max_bytes / 2**30:.1f} GiB): lower pool_size to '
                f'{self.pool_size * self.max_bytes // need} or raise max_bytes.'
            )
        check_memory(need, f'PooledSource: {self.pool_size} images', 'lower pool_size')
        start = time.perf_counter()
        self.pool = torch.empty((self.pool_size, 3, *self.image_size), dtype=torch.uint8)
        votes = []
        renderer = self._chosen_renderer(teacher)
        dataset = SyntheticDataset(self.image_size, renderer, self.seed, length=self.pool_size)
        loader = DataLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            # Of its own: a loader draws its workers' base seed from the global generator otherwise.
            generator=torch.Generator(),
        )
        done, told = 0, start
        # Both at once: the workers render while the teacher scores.
        with single_threaded_opencv(), frozen(teacher.net), torch.no_grad():
            for batch in loader:
                images = batch['image']
                self.pool[done : done + len(images)] = images
                done += len(images)
                if self.balance:
                    votes.append(
                        teacher.class_votes(teacher.encode(self._pixels(images))).float().cpu()
                    )
                now = time.perf_counter()
                if now - told > 5 and done < self.pool_size:
                    print_log(
                        f'Pool: {done} of {self.pool_size} images, '
                        f'{(now - start) / done * (self.pool_size - done):.0f} s to go',
                        'current',
                    )
                    told = now
        if self.balance:
            self._weigh(torch.cat(votes).numpy())
            self._ask_symmetries(teacher)
        print_log(
            f'Pool of {self.pool_size} images ready in {time.perf_counter() - start:.1f} s',
            'current',
        )

    def _chosen_renderer(self, teacher: Adapter) -> dict:
        """The renderer; of several a mixture, by what the teacher knows about each."""
        if isinstance(self.renderer, dict):
            return self.renderer
        with single_threaded_opencv(), frozen(teacher.net):
            shares, found = teacher_shares(
                teacher, self.renderer, self.seed, self.image_size, self.device
            )
        said = ', '.join(
            f'{_title(cfg)} {share:.0%} ({known:.2f})'
            for cfg, share, known in zip(self.renderer, shares, found, strict=True)
        )
        print_log(
            f"Pool: renderers and their shares, by what the teacher's answers say of their images: "
            f'{said}',
            'current',
        )
        return dict(
            type='mmdfkd.CombinedRenderer',
            renderers=self.renderer,
            weights=shares.tolist(),
            joined=0.0,
        )

    def _weigh(self, votes: np.ndarray) -> None:
        """Keep the votes ``[N, classes]`` class by class and report what balancing changes."""
        self.votes = np.ascontiguousarray(votes.T.astype(np.float32))
        classes = len(self.votes)
        least = min(self.least_vote, max(10 * self.least_vote, 1.5) / classes)
        self.covered = np.flatnonzero(self.votes.max(1) >= least)
        total = float(self.votes.sum())
        if not len(self.covered) or total <= 0:
            print_log(
                f'Pool: the teacher sees none of its {classes} classes in any image (votes below '
                f'{least:.2g}); drawing uniformly',
                'current',
            )
            return
        before = self.votes.sum(1) / total
        after = self._expected_votes()
        few = max(1, classes // 4)
        print_log(
            f'Pool: {len(self.covered)} of {classes} classes covered; the least voted {few} get '
            f'{100 * np.sort(before)[:few].sum():.1f} % of the votes undrawn and '
            f'{100 * np.sort(after)[:few].sum():.1f} % as drawn '
            f'(even: {100 * few / classes:.1f} %)',
            'current',
        )

    def asks_symmetries(self, detects: bool) -> bool:
        """Whether the teacher is asked which flips and turns change what it sees."""
        return self.balance and not detects and hasattr(self.augment, 'restrict')

    def _ask_symmetries(self, teacher: Adapter) -> None:
        """Flip and turn drawn images only as their class remains: by the surest of each class."""
        if not len(self.covered) or not self.asks_symmetries(teacher.detects):
            return
        # The surest of each class, then the second of each, ...; each image once.
        surest = np.argsort(-self.votes[self.covered], 1, kind='stable')[:, :ASKED]
        chosen = list(dict.fromkeys(surest.T.reshape(-1).tolist()))[:ASKED]
        held = held_symmetries(teacher, self._pixels(self.pool[chosen]), Targets())
        self.augment.restrict(held)
        told = ', '.join(f'{name} {share:.0%}' for name, share in held.items())
        print_log(
            f'Pool: of the surest images, flipped or turned, the class remains in: {told}; used in '
            f'the draws: {", ".join(self.augment.used) or "none"}',
            'current',
        )

    def _expected_votes(self) -> np.ndarray:
        """Each class's share ``[classes]`` of the votes in the images as they are drawn."""
        weight = np.full(self.pool_size, self.uniform / self.pool_size)
        for label in self.covered:
            part = self.votes[label].astype(np.float64) ** self.power
            weight += (1 - self.uniform) / len(self.covered) * part / part.sum()
        shares = self.votes @ weight
        return shares / shares.sum()

    def _pixels(self, images: Tensor) -> Tensor:
        return images.to(self.device).float() / 255

    def _by_vote(self, label: int, u: float) -> int:
        """The image at quantile ``u`` of the votes for ``label``; any image where it has none."""
        heights = np.cumsum(self.votes[label].astype(np.float64) ** self.power)
        if heights[-1] <= 0:
            return int(u * self.pool_size)
        return min(int(np.searchsorted(heights, u * heights[-1], 'right')), self.pool_size - 1)

    def pick(self, g: int) -> int:
        """Which image of the pool sample ``g`` is."""
        rng = self.rng('pool', g)
        plain, which, place = rng.random(3)
        if not len(self.covered) or plain < self.uniform:
            return int(place * self.pool_size)
        return self._by_vote(int(self.covered[int(which * len(self.covered))]), place)

    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """Class-balanced, augmented images; they are meant to show nothing in particular."""
        indices = [item['g'] for item in items]
        return self._take([self.pick(g) for g in indices], indices), Targets()

    def draw_for(self, items: list[dict], labels: np.ndarray) -> Tensor:
        """Images in which the teacher sees something of the wanted classes, however little."""
        indices = [item['g'] for item in items]
        if self.votes is None:
            return self._take([self.pick(g) for g in indices], indices)
        chosen = [
            self._by_vote(int(label), self.rng('pool-class', g).random())
            for g, label in zip(indices, labels, strict=True)
        ]
        return self._take(chosen, indices)

    def _take(self, chosen: list[int], indices: list[int]) -> Tensor:
        if self.pool is None:
            raise RuntimeError('PooledSource: prepare() must run before images are drawn.')
        images = self._pixels(self.pool[chosen])
        return images if self.augment is None else self.augment(images, self.seed, indices)


def _title(cfg: Mapping) -> str:
    """A renderer's config in a few words."""
    inner, look = cfg.get('renderer'), cfg.get('look')
    own = {k: v for k, v in cfg.items() if k not in ('type', 'renderer', 'look')}
    name = _title(inner) if inner else str(cfg['type']).removeprefix('mmdfkd.')
    parts = [look, name, *(f'{k}={v}' for k, v in own.items())]
    return ' '.join(str(part) for part in parts if part)
