from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
import torch
from mmengine.dist import all_gather, get_dist_info
from mmengine.logging import print_log
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.registry import MODELS, TASK_UTILS

from ..automatic import build_priors
from ..blur import blurred
from ..frozen import frozen
from ..layouts import wanted_targets
from ..objective import balanced_label, check_suited, suited_priors, taps_of, weighted_names
from ..priors.base import Prior
from ..priors.context import SynthesisContext
from ..training import keep_best
from .retreat import RetreatingSource

#: Indices of the images to refine start here, so that they share no random numbers with those that
#: are drawn.
_OFFSET = 1 << 40


@MODELS.register_module()
class RefinedSource(RetreatingSource):
    """Another source's images, a share of them improved by a few gradient steps on their pixels.

    From time to time a batch is drawn whose wanted classes are balanced (whole passes over the
    classes), its pixels descend the priors through the frozen networks, and the best of each image
    goes into a ring of the newest ones. 5 to 20 steps from a procedural image cost a hundredth of
    an inversion from noise.

    Which images are refined, and towards what, follows from seed and iteration. The ring is in the
    checkpoint, and is the same on all processes: each refines its part and all get the whole.

    Args:
        source (Mapping): Config of the source of the start images; one that needs no rendered
            items.
        priors (Sequence[Mapping] | str): Configs of the terms of the objective; ``'auto'`` takes
            those of the teacher's report.
        every (int): Training steps between two batches.
        start (int): No batch before this step.
        batch (int): Images refined at once, of all processes together.
        steps (int): Gradient steps.
        lr (float): Root mean square of an image's change in one step, of the pixel range [0, 1].
        smooth (float): Gradients are blurred by a Gaussian of this deviation, as a share of the
            image's shorter side: figures, not the texture of patches; 0 turns it off.
        share (float): Share of the draws that come from the ring, once it has images.
        max_images (int): Size of the ring.
        augment (Mapping | None): Config of an augmentation of the images that come from the ring.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        source: Mapping,
        priors: Sequence[Mapping] | str = (
            dict(type='mmdfkd.TargetPrior', weight=1.0),
            dict(type='mmdfkd.DivergencePrior', weight=1.0),
            dict(type='mmdfkd.TotalVariationPrior', weight=0.02),
        ),
        every: int = 10,
        start: int = 0,
        batch: int = 16,
        steps: int = 10,
        lr: float = 0.01,
        smooth: float = 0.012,
        share: float = 0.25,
        max_images: int = 512,
        augment: Mapping | None = None,
    ) -> None:
        super().__init__()
        for name, value in dict(
            every=every, batch=batch, steps=steps, max_images=max_images
        ).items():
            if value < 1:
                raise ValueError(f'RefinedSource: {name} must be at least 1, got {value}.')
        if not 0 <= share <= 1:
            raise ValueError(f'RefinedSource: share must be from 0 to 1, got {share}.')
        self.source = MODELS.build(source)
        self.priors = build_priors(priors, 'RefinedSource')
        self.every = every
        self.start = start
        self.batch = batch
        self.steps = steps
        self.lr = lr
        self.smooth = smooth
        self.share = share
        self.max_images = max_images
        self.augment = None if augment is None else TASK_UTILS.build(augment)
        self._used: list[Prior] = list(self.priors)
        self.register_buffer('ring', torch.zeros((0, 3, 1, 1), dtype=torch.uint8))
        # The class wanted of each.
        self.register_buffer('labels', torch.zeros(0, dtype=torch.int64))
        self.register_buffer('written', torch.zeros((), dtype=torch.int64))

    def prepare(
        self,
        teacher: Adapter,
        *,
        seed: int,
        image_size: tuple[int, int],
        device: torch.device | str,
    ) -> None:
        """Prepare the inner source and choose the priors that suit the teacher; says which.

        Raises:
            ValueError: If no prior suits the teacher.
        """
        super().prepare(teacher, seed=seed, image_size=image_size, device=device)
        self.source.folder = None if self.folder is None else self.folder / 'start'
        self.source.prepare(teacher, seed=seed, image_size=image_size, device=device)
        self._used = suited_priors(self.priors, teacher, 'Refinement')
        check_suited(self._used, 'RefinedSource')
        print_log(
            f'Refinement: {self.batch} images every {self.every} steps, '
            f'{self.steps} times down {weighted_names(self._used)}',
            'current',
        )

    @property
    def needs_items(self) -> bool:
        """As the inner source."""
        return self.source.needs_items

    def fill(self, teacher: Adapter) -> None:
        """Fill the inner source."""
        self.source.fill(teacher)

    def refresh(self, teacher: Adapter, student: Adapter, iteration: int) -> dict[str, float]:
        """Refine a batch if it is time.

        Returns:
            dict[str, float]: Mean objective before and after, and each unweighted term after; empty
                when it is
            not time.
        """
        logs = self.source.refresh(teacher, student, iteration)
        if iteration < self.start or iteration % self.every:
            return logs
        first = iteration // self.every * self.batch
        rank, world = get_dist_info()
        count = ceil(self.batch / world)
        serials = [first + (rank * count + i) % self.batch for i in range(count)]
        labels = np.array([self._label(serial, teacher.num_classes) for serial in serials])
        items = [dict(g=_OFFSET + serial) for serial in serials]
        with frozen(teacher.net, student.net):
            images = self.source.draw_for(items, labels)
            images, found = self.refine(
                images, torch.as_tensor(labels).to(images.device), teacher, student, serials
            )
        images = (images * 255).round().to(torch.uint8)
        if world > 1:
            images = torch.cat(all_gather(images))[: self.batch]
            serials = range(first, first + self.batch)
        wanted = [self._label(serial, teacher.num_classes) for serial in serials]
        self._keep(images, torch.as_tensor(wanted))
        return {**logs, **found}

    def _label(self, serial: int, classes: int) -> int:
        """The class wanted of an image: every pass over the classes has its own order."""
        return balanced_label('refined-classes', self.seed, serial, classes)

    @torch.enable_grad()
    def refine(
        self,
        start: Tensor,
        labels: Tensor,
        teacher: Adapter,
        student: Adapter,
        serials: Sequence[int] | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Descend the priors from ``start``; both networks must be frozen.

        Steps have momentum and, image by image, the same length. Adam would move every pixel alike
        and answer with a faint patch texture all over; this way the pixels that matter move, and
        with blurred gradients (as a shift of the pixel grid would average them) they move together.
        Each image takes its own way, so the result depends on the batch only through batch-level
        priors.

        Args:
            start (Tensor): ``[B, 3, H, W]`` in [0, 1].
            labels (Tensor): The class wanted of each, ``[B]``.
            teacher (Adapter): The teacher.
            student (Adapter): The student.
            serials (Sequence[int], optional): Number of each image, for priors with random parts.

        Returns:
            tuple[Tensor, dict[str, float]]: For each image the best one met, and values to log.
        """
        targets, probe = wanted_targets(start, labels, teacher)
        taps = taps_of(self._used, teacher)
        settings = dict(probe=probe, taps=taps, seed=self.seed, serials=serials)
        images = start.detach().clone().requires_grad_()
        sigma = self.smooth * min(start.shape[-2:])
        move = torch.zeros_like(start)
        first, best = None, None
        for step in range(self.steps + 1):
            with torch.set_grad_enabled(step < self.steps):
                ctx = SynthesisContext(images, targets, teacher, student, step=step, **settings)
                terms = {prior: prior(ctx) for prior in self._used}
                total = sum(prior.weight * term for prior, term in terms.items())
                total = total.expand(len(images)) if total.dim() == 0 else total
            first = total.detach().clone() if best is None else first
            best = keep_best(best, images, total)
            if step < self.steps:
                (gradient,) = torch.autograd.grad(total.sum(), [images])
                with torch.no_grad():
                    move = (move + blurred(gradient, sigma)) / 2
                    length = move.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
                    images.sub_(self.lr * move / length).clamp_(0, 1)
        logs = {f'refined/{prior.name}': float(term.mean()) for prior, term in terms.items()}
        with torch.no_grad():
            kept = SynthesisContext(best[1], targets, teacher, student, step=self.steps, **settings)
            for prior in self._used:
                prior.finished(kept)
        return best[1], {
            'refined/before': float(first.mean()),
            'refined/after': float(best[0].mean()),
            **logs,
        }

    def _keep(self, images: Tensor, labels: Tensor) -> None:
        """Add to the ring, over the oldest ones once it is full."""
        images = images.to(self.ring.device)[-self.max_images :]
        labels = labels.to(self.labels)[-self.max_images :]
        if len(self.ring) == 0:
            self.ring = images[:0].clone()
        room = self.max_images - len(self.ring)
        self.ring = torch.cat([self.ring, images[:room]])
        self.labels = torch.cat([self.labels, labels[:room]])
        rest = images[room:]
        at = (
            int(self.written) + min(room, len(images)) + torch.arange(len(rest))
        ) % self.max_images
        at = at.to(self.ring.device)
        self.ring[at] = rest
        self.labels[at] = labels[room:]
        self.written += len(images)

    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """The inner source's images, ``share`` of them replaced by refined ones."""
        images, targets = self.source.draw(items)
        if not len(self.ring):
            return images, targets
        if self.image_size is not None and tuple(self.ring.shape[-2:]) != self.image_size:
            raise ValueError(
                'RefinedSource: the checkpoint holds refined images of '
                f'{tuple(self.ring.shape[-2:])} px, the run draws {self.image_size}: '
                'resume with the image size of the checkpoint.'
            )
        chosen = []
        for position, item in enumerate(items):
            refined, place = self.rng('refined', item['g']).random(2)
            if refined < self.share_now:
                chosen.append((position, int(place * len(self.ring))))
        if not chosen:
            return images, targets
        positions, slots = (list(part) for part in zip(*chosen, strict=True))
        fresh = self.ring[slots].to(images.device).float() / 255
        if self.augment is not None:
            fresh = self.augment(fresh, self.seed, [items[p]['g'] for p in positions])
        images[positions] = fresh
        # The inner source's layouts and classes are not those of the refined images.
        targets.boxes = targets.box_labels = None
        if targets.labels is not None:
            targets.labels[positions] = self.labels[slots].to(targets.labels)
        if targets.answers is not None:
            targets.answers[positions] = float('nan')
        return images, targets

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # The ring has as many images as there were: take the shape from the checkpoint.
        ring = state_dict.get(prefix + 'ring')
        if ring is not None:
            self.ring = torch.zeros(ring.shape, dtype=torch.uint8, device=self.ring.device)
            self.labels = torch.zeros(len(ring), dtype=torch.int64, device=self.ring.device)
            # Earlier checkpoints do not name the classes.
            state_dict.setdefault(prefix + 'labels', torch.full((len(ring),), -1))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
