"""Which of the images that somebody has a teacher can teach on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.losses.attention_consistency import attention_uniformity

from .frozen import frozen
from .near_duplicates import BITS, CosineFilter, HashFilter, difference_hash
from .priors.attention_reading import patch_scores
from .priors.context import SynthesisContext
from .priors.embedding import embedding_layers, image_embedding
from .priors.parts import AttentionLayer, attention_layers, without_attention

RANKINGS = ('confidence', 'attention_probe')
DUPLICATES = (None, 'hash', 'embedding')


@dataclass
class Candidate:
    """An image that could be read, and what is known of it.

    Attributes:
        number: Its place among the files.
        label: The class that the teacher sees most.
        confidence: How much of it, in [0, 1].
        score: What it is ranked by, smallest first.
        signature: A hash or an embedding, None where duplicates are kept.
    """

    number: int
    label: int
    confidence: float
    score: float
    signature: Any = field(default=None, repr=False)


class FolderFilter:
    """Ranks images by the teacher, and drops unsure ones and near-duplicates.

    ``rank_by='confidence'`` is DFND (Chen et al., CVPR 2021): the smallest ``o = -log max p(x)``.
    ``rank_by='attention_probe'`` is stage 1 of Attention Probe (Wang et al., ICASSP 2022; papers.md
    4.2): the smallest ``lambda_a (s^a + s^b) + lambda_o o``, where ``s`` is the cosine between the
    class token's attention to the patches and uniform attention, in the first head of the blocks at
    a third and at two thirds of the depth. In the authors' release the switch is inverted: their
    scripts rank by ``o`` alone; ``released=True`` does so, too.

    Args:
        rank_by (str): See above.
        released (bool): See above.
        keep (int | float | None): How many of the best, or, as a float, which share of those that
            pass the rest; all without.
        min_confidence (float): Least confidence of the teacher, in [0, 1].
        probe_weights (tuple[float, float]): ``lambda_a`` and ``lambda_o``.
        probe_head (int | None): The head that is read; None averages over all.
        duplicates (str | None): ``'hash'`` compares coarse differences of brightness,
            ``'embedding'`` what the teacher makes of the images; None keeps all. Of near-duplicates
            the best stays.
        distance (int): Bits, of 128, by which hashes of near-duplicates differ at most.
        similarity (float): Cosine from which on embeddings are near-duplicates'.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        rank_by: str = 'confidence',
        released: bool = False,
        keep: int | float | None = None,
        min_confidence: float = 0.0,
        probe_weights: tuple[float, float] = (0.05, 0.9),
        probe_head: int | None = 0,
        duplicates: str | None = 'hash',
        distance: int = 4,
        similarity: float = 0.98,
    ) -> None:
        def refuse(name: str, what: str, value: Any) -> None:
            raise ValueError(f'FolderSource: {name} must be {what}, got {value!r}.')

        if rank_by not in RANKINGS:
            refuse('rank_by', f'one of {RANKINGS}', rank_by)
        if duplicates not in DUPLICATES:
            refuse('duplicates', f'one of {DUPLICATES}', duplicates)
        if not 0 <= min_confidence <= 1:
            refuse('min_confidence', 'from 0 to 1', min_confidence)
        if isinstance(keep, float) and not 0 < keep <= 1:
            refuse('keep', 'a number of images, or a share above 0 and up to 1', keep)
        if isinstance(keep, int) and keep < 1:
            refuse('keep', 'at least 1', keep)
        if not 0 <= distance < BITS:
            refuse('distance', f'from 0 to {BITS - 1}', distance)
        if not 0 < similarity <= 1:
            refuse('similarity', 'above 0 and at most 1', similarity)
        if released and rank_by != 'attention_probe':
            refuse('released', "False unless rank_by='attention_probe'", released)
        self.rank_by = rank_by
        self.released = released
        self.keep = keep
        self.min_confidence = min_confidence
        self.probe_weights = tuple(probe_weights)
        self.probe_head = probe_head
        self.duplicates = duplicates
        self.distance = distance
        self.similarity = similarity

    @property
    def settings(self) -> dict[str, Any]:
        """What a choice depends on, for its record."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def _probe_layers(self, teacher: Adapter) -> list[AttentionLayer]:
        """The two blocks whose attention is read; none where the ranking does without.

        Raises:
            ValueError: If the teacher has no such attention, or not so many heads.
        """
        if self.rank_by != 'attention_probe' or self.released:
            return []
        reason = without_attention(teacher.net)
        if reason is not None:
            raise ValueError(
                f"FolderSource: rank_by='attention_probe' does not apply: {reason.split(';')[0]}; "
                "rank_by='confidence' would do."
            )
        layers = attention_layers(teacher.net)
        chosen = [min(layers, key=lambda one: abs(one.depth - d)) for d in (1 / 3, 2 / 3)]
        heads = min(layer.num_heads for layer in chosen)
        if self.probe_head is not None and not 0 <= self.probe_head < heads:
            raise ValueError(
                f'FolderSource: probe_head={self.probe_head}, but the teacher has {heads} heads.'
            )
        return chosen

    @torch.no_grad()
    def look(
        self, images: np.ndarray, numbers: list[int], teacher: Adapter, device: torch.device
    ) -> list[Candidate]:
        """What the teacher says of some images.

        Args:
            images (np.ndarray): RGB uint8 ``[B, H, W, 3]``.
            numbers (list[int]): Their places among the files.
            teacher (Adapter): The teacher.
            device (torch.device): Where it is.
        """
        probes = self._probe_layers(teacher)
        blocks = embedding_layers(teacher) if self.duplicates == 'embedding' else []
        taps = [layer.qkv for layer in probes] + [layer.block for layer in blocks]
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
        with frozen(teacher.net):
            ctx = SynthesisContext(pixels, Targets(), teacher, taps=tuple(dict.fromkeys(taps)))
            memory = ctx.teacher_memory
            confidence, label = teacher.class_votes(memory).float().max(1)
            score = -confidence.clamp_min(1e-12).log()
            if probes:
                even = sum(self._uniformity(ctx, layer) for layer in probes)
                score = self.probe_weights[0] * even + self.probe_weights[1] * score
            signatures: list = [None] * len(images)
            if self.duplicates == 'embedding':
                signatures = list(image_embedding(memory, blocks).float().cpu().numpy())
            elif self.duplicates == 'hash':
                signatures = [difference_hash(image) for image in images]
        rows = (part.tolist() for part in (label, confidence, score))
        return [Candidate(*row) for row in zip(numbers, *rows, signatures, strict=True)]

    def _uniformity(self, ctx: SynthesisContext, layer: AttentionLayer) -> Tensor:
        """``s`` of each image ``[B]``: 1 where the attention prefers no patch."""
        scores, _ = patch_scores(ctx, layer, 'class' if layer.class_row else 'mean')
        each = attention_uniformity(scores.squeeze(2).softmax(-1), 0)
        return each.mean(1) if self.probe_head is None else each[:, self.probe_head]

    def choose(self, candidates: list[Candidate]) -> tuple[list[Candidate], dict[str, int]]:
        """The images that pass, best first, and how many each filter held back.

        Args:
            candidates (list[Candidate]): All that could be read.

        Returns:
            tuple[list[Candidate], dict[str, int]]: The chosen, and counts by filter:
                ``unsure``, ``duplicates`` and ``beyond_keep``.
        """
        sure = [one for one in candidates if one.confidence >= self.min_confidence]
        sure.sort(key=lambda one: (one.score, one.number))
        is_new = self._comparison()
        unlike = [one for one in sure if is_new(one.signature)]
        limit = self.keep
        if isinstance(limit, float):
            limit = max(1, round(limit * len(unlike)))
        chosen = unlike[:limit]
        return chosen, dict(
            unsure=len(candidates) - len(sure),
            duplicates=len(sure) - len(unlike),
            beyond_keep=len(unlike) - len(chosen),
        )

    def _comparison(self) -> Callable[[Any], bool]:
        if self.duplicates is None:
            return lambda signature: True
        if self.duplicates == 'hash':
            return HashFilter(self.distance).take
        return CosineFilter(self.similarity).take
