"""What a DETR-like decoder is asked, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch.nn.functional as F
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from .observation import Probe, Response


@dataclass
class Queries:
    """One set of queries, without gradient; what a decoder has not is None.

    Attributes:
        kind: Name of the decoder's kind. Content and position mean the same only within one kind,
            references mean the same to all.
        content: ``[B, Q, D]``, what enters the decoder's first layer.
        position: Learned positions: ``[B, Q, D]``, in DAB-DETR anchors before the sigmoid, ``[B, Q,
            4]``.
        references: Boxes as ``(cx, cy, w, h)``, or points as ``(cx, cy)``, in shares of the image:
            ``[B, Q, 4]`` or ``[B, Q, 2]``.
    """

    kind: str
    content: Tensor | None = None
    position: Tensor | None = None
    references: Tensor | None = None


@dataclass
class QueryAnswers:
    """What each decoder layer says at one set of queries, before any selection.

    Attributes:
        logits: ``[L, B, Q, classes]`` where each class is a sigmoid of its own, ``[L, B, Q, classes
            + 1]``, background last, under a softmax.
        boxes: ``(cx, cy, w, h)`` in shares of the image, ``[L, B, Q, 4]``.
        sigmoid: Which of both.
    """

    logits: Tensor
    boxes: Tensor
    sigmoid: bool

    @property
    def probabilities(self) -> Tensor:
        """Of the foreground classes in the last layer: ``[B, Q, classes]``."""
        last = self.logits[-1]
        return last.sigmoid() if self.sigmoid else last.softmax(-1)[..., :-1]

    @property
    def with_background(self) -> Tensor:
        """Logits of the last layer with the background last: ``[B, Q, classes + 1]``.

        A column of zeros lets softmax readers read sigmoids: ``softmax((z, 0))`` is ``sigmoid(z)``
        where one class stands out.
        """
        return F.pad(self.logits[-1], (0, 1)) if self.sigmoid else self.logits[-1]

    def pixels(self, image_size: tuple[int, int]) -> Tensor:
        """Boxes of the last layer, xyxy pixels, as they are, also outside: ``[B, Q, 4]``."""
        h, w = image_size
        last = self.boxes[-1]
        return bbox_cxcywh_to_xyxy(last) * last.new_tensor([w, h, w, h])


@dataclass
class QueryProbe(Probe):
    """The teacher's queries, and where they led it.

    Attributes:
        boxes: Per image the boxes of its last layer, one a query, ``[Q, 4]`` xyxy pixels.
        scores: Per image ``[Q]``, the highest probability of any class.
        queries: Its own queries.
        fresh: Random ones, which nobody was trained at (KD-DETR's general sampling), or None.
    """

    queries: Queries
    fresh: Queries | None = None


@dataclass
class QueryResponse(Response):
    """A DETR-like network's response.

    ``logits`` and ``deltas`` (boxes as ``(cx, cy, w, h)``, in shares of the image) are rows of the
    last layer, one for each box of the probe, image by image. ``dense_logits`` and ``dense_deltas``
    are those of the encoder's proposals, of networks that choose their queries among them: per
    level ``[B, 1, h, w]``, by which they choose, and ``[B, 4, h, w]``.

    Attributes:
        asked: Answers at the probe's queries; None where this decoder cannot be asked them. Rows
            are then those of its own query that is nearest to each of the probe's boxes.
        fresh: Answers at the probe's random queries, or None.
        find_own: Runs the decoder at the network's own queries.
        find_queries: Makes these queries, without gradient.
        ask: Runs the decoder at any others, with gradient where the response has one; None where it
            cannot be asked them.
    """

    asked: QueryAnswers | None = None
    fresh: QueryAnswers | None = None
    find_own: Callable[[], QueryAnswers] | None = field(default=None, repr=False)
    find_queries: Callable[[], Queries] | None = field(default=None, repr=False)
    ask: Callable[[Queries], QueryAnswers | None] | None = field(default=None, repr=False)

    @cached_property
    def own(self) -> QueryAnswers:
        """Answers at the network's own queries, computed when first asked for."""
        return self.find_own()
