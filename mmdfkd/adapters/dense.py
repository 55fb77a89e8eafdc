"""What a dense one-stage detector is asked, and what it answers."""

from dataclasses import dataclass, field

from torch import Tensor

from .observation import Probe, Response


@dataclass
class DenseAnswers:
    """What the network says at every place of every level, before any selection.

    Places are in mmdet's own order: levels one after the other, row by row, the anchors of a
    position together; ``N`` of them.

    Attributes:
        logits: One sigmoid a class, ``[B, N, classes]``.
        boxes: Where they lead, xyxy pixels, as they are, also outside: ``[B, N, 4]``.
        grid: Per level ``(stride, h, w, anchors)``; networks with one grid have paired places.
        distributions: Logits of each side's distance (GFL), ``[B, N, 4, bins]``, or None.
        centerness: Logits (FCOS), ``[B, N]``, or None.
    """

    logits: Tensor
    boxes: Tensor
    grid: tuple[tuple[int, int, int, int], ...]
    distributions: Tensor | None = None
    centerness: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """What mmdet ranks detections by: ``[B, N, classes]`` in [0, 1]."""
        scores = self.logits.sigmoid()
        return scores if self.centerness is None else scores * self.centerness.sigmoid()[..., None]


@dataclass
class DenseProbe(Probe):
    """The teacher's surest places.

    Attributes:
        boxes: Per image the boxes that it gives there, ``[K, 4]`` xyxy pixels.
        scores: Per image ``[K]``, the highest of any class.
        index: Per image ``[K]``, which places.
        grid: Of which grid; a network of another one is asked at the boxes.
    """

    index: list[Tensor]
    grid: tuple[tuple[int, int, int, int], ...]


@dataclass(kw_only=True)
class DenseResponse(Response):
    """A dense one-stage network's response.

    ``logits`` are rows, one for each box of the probe, image by image: its classes, and a last
    column of zeros that lets softmax readers read sigmoids. ``dense_logits`` and ``dense_deltas``
    are the network's own maps, per level ``[B, A * classes, h, w]`` and ``[B, A * 4, h, w]`` (GFL:
    ``4 * bins``); distances are in pixels.

    Attributes:
        answers: The same, place by place, boxes decoded.
        towers: Outputs of the head's convolutions with gradient, ``'cls'`` and ``'reg'``: one list
            a convolution, one map a level; empty without gradient.
    """

    answers: DenseAnswers
    towers: dict[str, list[list[Tensor]]] = field(default_factory=dict, repr=False)
