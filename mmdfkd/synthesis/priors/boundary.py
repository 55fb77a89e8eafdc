import torch
import torch.nn.functional as F
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext
from .embedding import EmbeddingMemory
from .ranks import gathered, of_other_ranks


@MODELS.register_module()
class BoundaryPreservingPrior(Prior):
    """Images of a class are to differ, but not so far that they near another class.

    DearKD (Chen et al., CVPR 2022) names such an *intra-divergence* for its data-free mode; its
    formula was not found, and this one is ours. On the features before the teacher's last layer,
    with cosine distances ``d``, the nearest image ``p`` of an image's class, the nearest ``n`` of
    another and the class mean ``c``:

    ``relu(spread - d(a, p)) + relu(margin + d(a, c) - d(a, n))``.

    Batch-level: the mean over the images that have such neighbours, in the batch, on the other
    processes or among the finished images remembered (these without gradient). Neighbours get
    nearer as there are more images, so both margins bind more; with ``memory`` larger than the
    batch, the batch matters little. A class with one image is only held from the others by its
    margin. All processes need equally many images.

    Args:
        weight (float): Factor of the term in the objective.
        spread (float): Least cosine distance between two images of a class, in [0, 2].
        margin (float): By how much another class is to be farther than the own mean, in [0, 2].
        memory (int): Finished images that are remembered, in the checkpoint too.

    Raises:
        ValueError: If a distance is none.
    """

    name = 'boundary'
    remembers = True
    role = 'diversity'

    def __init__(
        self,
        weight: float = 1.0,
        spread: float = 0.1,
        margin: float = 0.1,
        memory: int = 1024,
    ) -> None:
        super().__init__(weight)
        for name, value in dict(spread=spread, margin=margin).items():
            if not 0 <= value <= 2:
                raise ValueError(f'BoundaryPreservingPrior: {name} is from 0 to 2, got {value}.')
        self.spread = spread
        self.margin = margin
        self.memory = EmbeddingMemory(memory)

    def unsuited(self, teacher: Adapter) -> str | None:
        """Where images have no class, or the head does not say what its last layer sees."""
        if teacher.family != 'classifier':
            return (
                f'a {teacher.family} teacher names no class of a whole image; '
                'mmdfkd.ContrastivePrior needs no classes'
            )
        head = getattr(teacher.net, 'head', teacher.net)
        if not hasattr(head, 'pre_logits'):
            return (
                f'{type(head).__name__} does not give the features before its last '
                'layer (pre_logits); mmdfkd.ContrastivePrior takes those of the backbone'
            )
        return None

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """Scalar, at least zero.

        Raises:
            ValueError: If the images have no target classes.
        """
        labels = ctx.targets.labels
        if labels is None:
            raise ValueError(
                'BoundaryPreservingPrior: needs target classes, and the source sets none; '
                'mmdfkd.ContrastivePrior needs no classes.'
            )
        own = before_last_layer(ctx)
        return boundary_preserving(
            own,
            labels,
            torch.cat([of_other_ranks(own), self.memory.rows(own)]),
            torch.cat([of_other_ranks(labels), self.memory.labels.to(labels)]),
            self.spread,
            self.margin,
        )

    @torch.no_grad()
    def finished(self, ctx: SynthesisContext) -> None:
        """Remember the images of all processes."""
        self.memory.add(gathered(before_last_layer(ctx)), gathered(ctx.targets.labels))


def before_last_layer(ctx: SynthesisContext) -> Tensor:
    """What the teacher's last layer sees, of unit length: ``[B, D]``; both tokens of a DeiT."""
    feature = ctx.teacher.net.head.pre_logits(ctx.teacher_memory.feats)
    feature = feature if isinstance(feature, Tensor) else torch.cat(list(feature), -1)
    return F.normalize(at_least_float32(feature), dim=-1)


def boundary_preserving(
    features: Tensor,
    labels: Tensor,
    more: Tensor,
    more_labels: Tensor,
    spread: float,
    margin: float,
) -> Tensor:
    """See :class:`BoundaryPreservingPrior`.

    Args:
        features (Tensor): ``[B, D]`` of unit length.
        labels (Tensor): ``[B]``.
        more (Tensor): ``[M, D]``, further images, constants; may be empty.
        more_labels (Tensor): ``[M]``.
        spread (float): Least distance within a class.
        margin (float): Least lead of the own class.

    Returns:
        Tensor: Scalar: the mean of the first part over the images with a neighbour of their class,
            plus that of the second over the images with one of another.
    """
    everyone = torch.cat([features, more.to(features)])
    classes = torch.cat([labels, more_labels.to(labels)])
    with torch.autocast(features.device.type, enabled=False):
        distances = 1 - features @ everyone.t()
        same = labels[:, None] == classes[None]
        means = F.normalize(same.to(features) @ everyone, dim=-1)
        to_mean = 1 - (features * means).sum(-1)
    itself = torch.arange(len(classes), device=labels.device) == torch.arange(
        len(labels), device=labels.device
    ).unsqueeze(1)
    # Farther than any cosine distance.
    far = 4.0
    nearest = distances.masked_fill(~same | itself, far).amin(1)
    other = distances.masked_fill(same, far).amin(1)
    crowded = ((spread - nearest).relu(), (same & ~itself).any(1))
    straying = ((margin + to_mean - other).relu(), (~same).any(1))
    return sum((value * has).sum() / has.sum().clamp_min(1) for value, has in (crowded, straying))
