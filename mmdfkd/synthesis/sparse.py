"""Inversion on a part of the patches: what costs less, and how a transformer runs on it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Memory
from mmdfkd.registry import TASK_UTILS

from .priors.attention_reading import patch_scores
from .priors.context import SynthesisContext
from .priors.parts import AttentionLayer, attention_layers, patch_size

_IMPORTANCE = ('attention', 'gradient')
_DROPPED = ('stay', 'mean')


# Running on some patches -------------------------------------------------------------------------


def dense_only(teacher: Adapter) -> str | None:
    """Why a teacher cannot run on a part of its patches; None where it can.

    It can where the patches are a list of tokens from the first block on, and the answer needs no
    map of them: mmpretrain's plain transformers with a class token or averaged patches.
    """
    layers = attention_layers(teacher.net)
    if teacher.family != 'classifier' or not layers or patch_size(teacher.net) is None:
        return (
            f'a {type(teacher.net).__name__} on '
            f'{type(getattr(teacher.net, "backbone", teacher.net)).__name__} does not take its '
            'patches as a list of tokens (a plain ViT or DeiT classifier does)'
        )
    backbone = teacher.net.backbone
    if hasattr(backbone, 'global_indices') or backbone.out_type == 'featmap':
        return 'its backbone returns a map of all patches'
    return None


def patch_grid(teacher: Adapter, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the patches of an image of ``size``, height and width in pixels.

    Raises:
        ValueError: If patches do not cover the image exactly.
    """
    patch = patch_size(teacher.net)
    if any(side % part for side, part in zip(size, patch, strict=True)):
        raise ValueError(
            f'Sparse inversion: images of {size[0]} x {size[1]} px are no whole number of patches '
            f'of {patch[0]} x {patch[1]} px: set image_size to a multiple of them.'
        )
    return size[0] // patch[0], size[1] // patch[1]


@contextmanager
def only_patches(net: nn.Module, layer: AttentionLayer, kept: Tensor) -> Iterator[None]:
    """Let a transformer's blocks see some of the patches only.

    The tokens are chosen where they enter the first block: each has its position's embedding by
    then, the prefix tokens stay, and blocks, taps and fused kernels meet a shorter list.

    Args:
        net (nn.Module): The network.
        layer (AttentionLayer): Its first one.
        kept (Tensor): ``[B, K]`` numbers of patches, row by row over the image.
    """
    first = net.get_submodule(layer.block)
    prefix = layer.prefix_tokens

    def choose(_: nn.Module, args: tuple) -> tuple:
        tokens = args[0]
        index = (kept + prefix)[..., None].expand(-1, -1, tokens.shape[-1])
        return (torch.cat([tokens[:, :prefix], tokens.gather(1, index)], 1), *args[1:])

    handle = first.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def encode_patches(
    teacher: Adapter, images: Tensor, kept: Tensor, taps: Sequence[str] = ()
) -> Memory:
    """As :meth:`~mmdfkd.adapters.base.Adapter.encode`, on some patches of each image.

    Args:
        teacher (Adapter): One of which :func:`dense_only` gives None.
        images (Tensor): RGB in [0, 1], ``[B, 3, H, W]``; gradients reach the kept patches only.
        kept (Tensor): ``[B, K]`` numbers of patches, each at most once in an image.
        taps (Sequence[str]): As there; tokens come in the order of ``kept``.

    Returns:
        Memory: With :attr:`~mmdfkd.adapters.observation.Memory.kept`.
    """
    with only_patches(teacher.net, attention_layers(teacher.net)[0], kept):
        memory = teacher.encode(images, taps)
    memory.kept = kept
    return memory


# Importance --------------------------------------------------------------------------------------


def patch_energy(gradient: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean square of a gradient ``[B, 3, H, W]`` over each patch: ``[B, N]``."""
    count, channels, height, width = gradient.shape
    rows, columns = grid
    cells = gradient.view(count, channels, rows, height // rows, columns, width // columns)
    return cells.square().mean((1, 3, 5)).flatten(1)


def mean_colour(teacher: Adapter) -> Tensor:
    """The colour that is zero in the teacher's input, RGB in [0, 1]: ``[3, 1, 1]``."""
    mean = teacher.normalizer.mean.clamp(0, 255) / 255
    return mean.flip(0) if teacher.normalizer.order == 'bgr' else mean


def pixels_of(kept: Tensor, grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Which pixels lie in the kept patches: bool ``[B, 1, H, W]``.

    Args:
        kept (Tensor): ``[B, K]`` numbers of patches.
        grid (tuple[int, int]): Rows and columns of the patches.
        size (Sequence[int]): Height and width in pixels.
    """
    mask = kept.new_zeros((len(kept), grid[0] * grid[1]), dtype=torch.bool)
    mask.scatter_(1, kept, True)
    mask = mask.view(-1, 1, *grid)
    return mask.repeat_interleave(size[0] // grid[0], 2).repeat_interleave(size[1] // grid[1], 3)


def split_patches(kept: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` kept patches of the highest score, and the others; each in ascending order.

    Args:
        kept (Tensor): ``[B, K]`` numbers of patches.
        scores (Tensor): ``[B, K]``, of each; of equal ones the earlier patch is first.
        count (int): How many.
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    chosen, others = order.split([count, order.shape[1] - count], 1)
    return (kept.gather(1, part).sort(1).values for part in (chosen, others))


# Schedules ---------------------------------------------------------------------------------------


class SparseMode(ABC):
    """When patches leave the optimisation, and which.

    Steps are those at full resolution. Importance is averaged over the steps before an event; each
    peer takes it from one step of a noisy optimisation.

    Args:
        importance (str): ``'attention'``: the last block's attention of the class token (of the
            patches' mean query without one), averaged over heads; or ``'gradient'``: the mean
            square of the objective's gradient over the patch's pixels.
        window (int): Steps before an event over which importance is averaged.
        dropped (str): What is drawn where a patch has left: ``'stay'``, its pixels as they were at
            that step; or ``'mean'``, the mean colour of the teacher's input, its zero.

    Raises:
        ValueError: If an argument makes no sense.
    """

    #: Images of one trajectory.
    images: int = 1

    def __init__(self, importance: str, window: int, dropped: str) -> None:
        name = type(self).__name__
        if importance not in _IMPORTANCE:
            raise ValueError(f'{name}: importance is one of {_IMPORTANCE}, got {importance!r}.')
        if dropped not in _DROPPED:
            raise ValueError(f'{name}: dropped is one of {_DROPPED}, got {dropped!r}.')
        if window < 1:
            raise ValueError(f'{name}: window is at least 1, got {window}.')
        self.importance = importance
        self.window = window
        self.dropped = dropped

    @abstractmethod
    def events(self, patches: int, steps: int) -> Mapping[int, int]:
        """How many of the remaining patches are chosen, by the number of steps done.

        Args:
            patches (int): Of an image.
            steps (int): Of the optimisation.

        Raises:
            ValueError: If there are too few patches or steps.
        """

    @abstractmethod
    def mean_share(self, patches: int, steps: int) -> float:
        """Mean share of the patches that a step sees: what a run's matrix products cost."""

    @torch.no_grad()
    def scores(self, ctx: SynthesisContext, gradient: Tensor, kept: Tensor) -> Tensor:
        """Importance of the kept patches at one step: ``[B, K]``.

        Args:
            ctx (SynthesisContext): Of the step; with the last attention layer's ``qkv`` tapped.
            gradient (Tensor): Of the objective, to the canvas.
            kept (Tensor): ``[B, K]`` numbers of patches of the canvas.
        """
        if self.importance == 'gradient':
            grid = patch_grid(ctx.teacher, gradient.shape[-2:])
            return patch_energy(gradient, grid).gather(1, kept)
        layer = attention_layers(ctx.teacher.net)[-1]
        rows, _ = patch_scores(ctx, layer, 'class' if layer.class_row else 'mean')
        return rows.squeeze(2).softmax(-1).mean(1)

    def taps(self, teacher: Adapter) -> tuple[str, ...]:
        """What :meth:`scores` reads."""
        layers = attention_layers(teacher.net)
        return (layers[-1].qkv,) if self.importance == 'attention' else ()

    def drawn(self, canvas: Tensor, kept: Tensor, teacher: Adapter) -> Tensor:
        """The canvas ``[B, 3, H, W]`` as it is shown with only these patches kept."""
        if self.dropped == 'stay':
            return canvas
        size = canvas.shape[-2:]
        inside = pixels_of(kept, patch_grid(teacher, size), size)
        return torch.where(inside, canvas, mean_colour(teacher).to(canvas))

    def watched(self, events: Mapping[int, int], step: int) -> bool:
        """Whether importance is wanted of the step after ``step`` steps."""
        return any(step < event <= step + self.window for event in events)


@TASK_UTILS.register_module()
class PatchDropping(SparseMode):
    """Sparse model inversion: unimportant patches are dropped now and then and stay dropped.

    SMI (Hu et al., ICML 2024) drops 30 % after 50, 100, 200 and 300 of 4000 steps, whose mean share
    of patches is .264. Here they are shares of the steps, later than there, since fewer steps
    show a teacher less; ``at=(0.0125, 0.025, 0.05, 0.075)`` are the published ones.

    Args:
        at (Sequence[float]): When, as shares of the steps, in (0, 1), ascending.
        share (float): Share of the patches left that are dropped each time, in (0, 1).
        importance (str): See :class:`SparseMode`.
        window (int): See :class:`SparseMode`.
        dropped (str): See :class:`SparseMode`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        at: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
        share: float = 0.3,
        importance: str = 'attention',
        window: int = 5,
        dropped: str = 'stay',
    ) -> None:
        super().__init__(importance, window, dropped)
        if not len(at) or list(at) != sorted(at) or not all(0 < part < 1 for part in at):
            raise ValueError(
                f'PatchDropping: at has ascending shares of the steps in (0, 1), not {tuple(at)}.'
            )
        if not 0 < share < 1:
            raise ValueError(f'PatchDropping: share is in (0, 1), got {share}.')
        self.at = tuple(at)
        self.share = share

    def events(self, patches: int, steps: int) -> dict[int, int]:
        """How many patches stay."""
        left = {}
        for number, part in enumerate(self.at, 1):
            # Before its first step there is nothing to judge patches by.
            step = max(1, int(part * steps))
            if step < steps:
                left[step] = max(1, round(patches * (1 - self.share) ** number))
        return left

    def mean_share(self, patches: int, steps: int) -> float:
        """As :meth:`SparseMode.mean_share`."""
        events = self.events(patches, steps)
        bounds = [0, *events, steps]
        counts = [patches, *events.values()]
        spans = (b - a for a, b in zip(bounds, bounds[1:], strict=False))
        return sum(n * span for n, span in zip(counts, spans, strict=True)) / (patches * steps)


@TASK_UTILS.register_module()
class PatchRebirth(SparseMode):
    """Patch rebirth inversion: several sparse images of one trajectory.

    PRI (arXiv 2509.23235): ``v`` times, evenly spread, the most important ``N / v`` of the patches
    that are left become a finished sparse image, and the optimisation goes on with the others. An
    image costs ``(v + 1) / (2 v^2)`` of a dense one, ``v`` times that per patch that it has.

    Args:
        images (int): ``v``, images of one trajectory.
        importance (str): See :class:`SparseMode`.
        window (int): See :class:`SparseMode`.
        dropped (str): See :class:`SparseMode`; in a finished image all patches that are not its own
            count as dropped. With ``'stay'`` they are shown as they are at that step.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        images: int = 4,
        importance: str = 'attention',
        window: int = 5,
        dropped: str = 'mean',
    ) -> None:
        super().__init__(importance, window, dropped)
        if images < 2:
            raise ValueError(f'PatchRebirth: images is at least 2, got {images}.')
        self.images = images

    def events(self, patches: int, steps: int) -> dict[int, int]:
        """How many patches become an image; the last event is after the last step."""
        if patches < self.images or steps < self.images:
            raise ValueError(
                f'PatchRebirth: {self.images} images of one trajectory need as many patches and '
                f'steps, and there are {patches} and {steps}: lower images.'
            )
        ends = [patches * k // self.images for k in range(self.images + 1)]
        counts = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        return {steps * (k + 1) // self.images: count for k, count in enumerate(counts)}

    def mean_share(self, patches: int, steps: int) -> float:
        """As :meth:`SparseMode.mean_share`."""
        total, left, before = 0, patches, 0
        for step, count in self.events(patches, steps).items():
            total += left * (step - before)
            left, before = left - count, step
        return total / (patches * steps)
