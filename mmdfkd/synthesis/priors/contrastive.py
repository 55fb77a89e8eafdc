from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.losses.reduce import at_least_float32
from mmdfkd.registry import MODELS

from .base import Prior
from .context import SynthesisContext
from .embedding import EmbeddingMemory, embedding_layers, image_embedding
from .ranks import gathered, of_other_ranks


@MODELS.register_module()
class ContrastivePrior(Prior):
    """An image is to differ from the others, and from those made before.

    Contrastive model inversion (CMI, Fang et al., IJCAI 2021): the teacher's embedding of a crop is
    to be nearer to that of its own image than to those of the other images, of the batch and of a
    memory, by InfoNCE of cosines (weight 0.8 to 1, temperature 0.1 to 0.5 there). Two things are
    ours: the embedding is the mean of the standardised patch tokens of three blocks, and of other
    networks of the last features, where CMI takes the inputs of batch norms; and no projection is
    learned on top. Crops and flips are a function of seed, image and step. It costs a second
    pass through the teacher.

    Batch-level: the mean over the images of ``-s_ii / T + log mean_j exp(s_ij / T)``. The mean, in
    place of InfoNCE's sum, takes out the number of the others (``log K``): more images or a larger
    memory make it more exact, not larger. A single image without memory has zero. Images of other
    processes count as others, without gradient to them; all processes need equally many.

    Args:
        weight (float): Factor of the term in the objective.
        temperature (float): ``T`` of the cosines.
        memory (int): Finished images that are remembered, in the checkpoint too.
        crop (Sequence[float]): Least and most share of the area that a crop has, in (0, 1].

    Raises:
        ValueError: If the temperature is not positive or the shares are none.
    """

    name = 'contrastive'
    extra_passes = 1.0
    remembers = True
    role = 'diversity'

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.2,
        memory: int = 4096,
        crop: Sequence[float] = (0.25, 1.0),
    ) -> None:
        super().__init__(weight)
        if temperature <= 0:
            raise ValueError(f'ContrastivePrior: temperature is positive, got {temperature}.')
        if len(crop) != 2 or not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f'ContrastivePrior: crop is (least, most) in (0, 1], not {crop}.')
        self.temperature = temperature
        self.crop = tuple(crop)
        self.memory = EmbeddingMemory(memory)

    def taps(self, teacher: Adapter) -> tuple[str, ...]:
        """Three blocks of a transformer, none of other networks."""
        return tuple(layer.block for layer in embedding_layers(teacher))

    def forward(self, ctx: SynthesisContext) -> Tensor:
        """Scalar."""
        layers = embedding_layers(ctx.teacher)
        whole = image_embedding(ctx.teacher_memory, layers)
        rngs = [ctx.rng('contrastive-crop', i, ctx.step) for i in range(len(ctx.images))]
        views = random_crops(ctx.images, rngs, self.crop)
        memory = ctx.teacher.encode(views, self.taps(ctx.teacher))
        return info_nce(
            image_embedding(memory, layers),
            whole,
            torch.cat([of_other_ranks(whole), self.memory.rows(whole)]),
            self.temperature,
        )

    @torch.no_grad()
    def finished(self, ctx: SynthesisContext) -> None:
        """Remember the images of all processes."""
        found = image_embedding(ctx.teacher_memory, embedding_layers(ctx.teacher))
        self.memory.add(gathered(found))


def info_nce(anchors: Tensor, positives: Tensor, others: Tensor, temperature: float) -> Tensor:
    """``mean_i (-s_ii / T + log mean_j exp(s_ij / T))`` of cosines ``s``.

    Args:
        anchors (Tensor): ``[B, D]`` of unit length.
        positives (Tensor): ``[B, D]``, the counterpart of each; the others' count as negatives.
        others (Tensor): ``[M, D]``, further negatives; may be empty.
        temperature (float): ``T``.

    Returns:
        Tensor: Scalar; InfoNCE less the logarithm of the number of candidates.
    """
    anchors, positives = at_least_float32(anchors), at_least_float32(positives)
    with torch.autocast(anchors.device.type, enabled=False):
        cosines = anchors @ torch.cat([positives, others.to(positives)]).t() / temperature
    candidates = cosines.shape[1]
    own = cosines.diagonal()
    return (cosines.logsumexp(1) - own).mean() - float(np.log(candidates))


def random_crops(
    images: Tensor, rngs: Sequence[np.random.Generator], share: Sequence[float]
) -> Tensor:
    """A crop of each image, flipped or not, enlarged to the size of the image.

    Args:
        images (Tensor): ``[B, C, H, W]``.
        rngs (Sequence[np.random.Generator]): Random numbers of each.
        share (Sequence[float]): Least and most share of the area.

    Returns:
        Tensor: The same shape; bilinear, differentiable.
    """
    thetas = []
    for rng in rngs:
        side = float(np.sqrt(rng.uniform(*share)))
        x, y = rng.uniform(-1, 1, 2) * (1 - side)
        flip = -1 if rng.random() < 0.5 else 1
        thetas.append([[flip * side, 0, x], [0, side, y]])
    theta = torch.tensor(thetas, dtype=images.dtype, device=images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode='reflection', align_corners=False)
