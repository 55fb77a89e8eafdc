from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .class_prior import soft_target
from .context import SynthesisContext


@MODELS.register_module()
class SubBoxPrior(Prior):
    """Boxes of an image show classes of their own, and the image a mixture of them.

    SARDFQ's multi-semantic reinforcement (ICCV 2025): some disjoint boxes of an image, each
    enlarged to its full size and drawn to a soft target of its own, whose gradient stays within the
    box. The mean of the boxes' targets is that of the whole image: with hard labels the boxes make
    images worse there. In the place of :class:`TargetPrior`; the first box has the class wanted.

    ``mean(KL(t || p), KL(t_1 || p_1), ..., KL(t_m || p_m))``, image-level. Boxes, classes and
    targets (:func:`~mmdfkd.synthesis.priors.class_prior.soft_target`) are functions of seed and
    image, and stay the same while it is optimised. Ours are cells of the image, cut in four at a
    random point. It costs a pass of each box, of the whole teacher in sparse inversion too.

    Args:
        weight (float): Factor of the term in the objective.
        most (int): Most boxes of an image, 1 to 4.
        sure (Sequence[float]): Least and most share of the class in a box's target, in (0, 1).

    Raises:
        ValueError: If the number of boxes or the shares are none.
    """

    name = 'sub_boxes'

    def __init__(
        self, weight: float = 1.0, most: int = 4, sure: Sequence[float] = (0.5, 0.95)
    ) -> None:
        super().__init__(weight)
        if not 1 <= most <= 4:
            raise ValueError(f'SubBoxPrior: most is 1 to 4, got {most}.')
        if len(sure) != 2 or not 0 < sure[0] <= sure[1] < 1:
            raise ValueError(f'SubBoxPrior: sure is (least, most) in (0, 1), not {tuple(sure)}.')
        self.most = most
        self.sure = tuple(sure)

    @property
    def extra_passes(self) -> float:
        """One of each box, on average: their number is even in 1 to ``most``."""
        return (1 + self.most) / 2

    def unsuited(self, teacher: Adapter) -> str | None:
        """Classes of whole images are a classifier's."""
        if teacher.family == 'classifier':
            return None
        return (
            f'a {teacher.family} teacher names no class of a box that fills the image; '
            'mmdfkd.TargetPrior asks for a layout'
        )

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """``[B]``, at least zero.

        Raises:
            ValueError: If the images have no target classes.
        """
        if ctx.targets.labels is None:
            raise ValueError('SubBoxPrior needs target classes, and the source sets none.')
        logits = at_least_float32(ctx.teacher_response.logits)
        boxes, targets, owner = [], [], []
        for position, label in enumerate(ctx.targets.labels.tolist()):
            found = sub_boxes(ctx.rng('sub-boxes', position), self.most)
            boxes += found
            owner += [position] * len(found)
            targets += self._targets(ctx, position, label, len(found), logits.shape[-1])
        owner = torch.tensor(owner, device=logits.device)
        target = torch.from_numpy(np.stack(targets)).to(logits)
        count = torch.bincount(owner, minlength=len(logits))[:, None]
        mixture = torch.zeros_like(logits).index_add_(0, owner, target) / count
        views = crops(ctx.images, boxes, owner)
        answers = at_least_float32(ctx.teacher.answer(ctx.teacher.encode(views), None).logits)
        whole, parts = _divergence(mixture, logits), _divergence(target, answers)
        total = torch.zeros_like(whole).index_add(0, owner, parts)
        return (whole + total) / (1 + count[:, 0])

    def _targets(
        self, ctx: SynthesisContext, position: int, label: int, count: int, classes: int
    ) -> list[np.ndarray]:
        """The targets of an image's boxes: its own class, then others."""
        rng = ctx.rng('sub-box-classes', position)
        others = rng.permutation(np.delete(np.arange(classes), label))
        shown = [label, *others.tolist()]
        return [
            soft_target(rng, shown[number % classes], classes, self.sure) for number in range(count)
        ]


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    """``KL(t || p)`` of each row: ``[N]``."""
    return F.kl_div(logits.log_softmax(-1), target, reduction='none').sum(-1)


def sub_boxes(rng: np.random.Generator, most: int) -> list[tuple[float, float, float, float]]:
    """Some disjoint boxes, xyxy in shares of the sides; each side is .35 to .65.

    Args:
        rng (np.random.Generator): Random numbers of the image.
        most (int): How many at most.
    """
    x, y = rng.uniform(0.35, 0.65, 2)
    cells = [(0.0, 0.0, x, y), (x, 0.0, 1.0, y), (0.0, y, x, 1.0), (x, y, 1.0, 1.0)]
    chosen = rng.permutation(4)[: rng.integers(1, most + 1)]
    return [cells[i] for i in chosen]


def crops(
    images: Tensor, boxes: Sequence[tuple[float, float, float, float]], owner: Tensor
) -> Tensor:
    """Boxes of images, enlarged to their size: ``[M, C, H, W]``, bilinear.

    Args:
        images (Tensor): ``[B, C, H, W]``.
        boxes (Sequence[tuple]): xyxy in shares of the sides.
        owner (Tensor): Whose each is, ``[M]``.
    """
    theta = images.new_tensor(
        [[[x2 - x1, 0, x1 + x2 - 1], [0, y2 - y1, y1 + y2 - 1]] for x1, y1, x2, y2 in boxes]
    )
    grid = F.affine_grid(theta, [len(boxes), *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[owner], grid, padding_mode='border', align_corners=False)
