"""What one network says about a batch of images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mmengine.structures import InstanceData
from torch import Tensor


@dataclass
class Matching:
    """Which query of a DETR-like network is meant by which box, kept from call to call.

    Where a query is the same one in every image, its box may move with the pixels: a source hands
    one matching over in every step, until the layout is another. A plan of anchors or places
    (``Targets.plan``) holds for one view alone.

    Attributes:
        rematch: Calls of the layout loss in which the pairs are found anew; then they stay.
        found: By network, the calls so far and the pairs of each image.
    """

    rematch: int
    found: dict[Any, tuple[int, list]] = field(default_factory=dict, repr=False)

    @classmethod
    def at(cls, step: int, steps: int) -> 'Matching':
        """Of a layout that begins at a step: pairs are found until a fifth of all is done.

        Once at least, for a layout that begins later: what it has been revised by is seen already.
        """
        return cls(max(math.ceil(steps / 5) - step, 1))


@dataclass
class Targets:
    """What a synthetic image is meant to show, and what is known of it.

    Attributes:
        labels: Class indices ``[B]`` (classification), or None.
        boxes: Per image, boxes ``[N, 4]`` as xyxy pixels (detection), or None.
        box_labels: Per image, class indices ``[N]`` of the boxes, or None.
        answers: Logits of a classifying teacher that were kept with the images, ``[B, classes]``;
            rows of NaN where there are none. None if there are none at all.
        plan: What the adapters derived from the boxes on first use (they do not move afterwards),
            by network; read by no one else.
        matching: Queries of the boxes, of DETR-like networks, or None until one asks.
    """

    labels: Tensor | None = None
    boxes: list[Tensor] | None = None
    box_labels: list[Tensor] | None = None
    answers: Tensor | None = None
    plan: dict[Any, Any] | None = field(default=None, repr=False)
    matching: Matching | None = field(default=None, repr=False)


@dataclass
class EncoderMemory:
    """What a DETR-like network's encoder leaves for its decoder.

    Attributes:
        tokens: The encoder's output, ``[B, N, D]``, levels one after the other, row by row.
        shapes: ``(h, w)`` of each level; ``N`` is the sum of their products.
        mask: ``[B, N]``, True on padding, or None where there is none.
        before_decoder: Arguments of mmdet's ``pre_decoder``.
        decoder: Arguments of mmdet's ``forward_decoder`` beside the queries and the tokens.
    """

    tokens: Tensor
    shapes: tuple[tuple[int, int], ...]
    mask: Tensor | None
    before_decoder: dict[str, Any] = field(repr=False)
    decoder: dict[str, Any] = field(repr=False)


@dataclass
class Memory:
    """What a network computes once per image, before its predictions.

    Attributes:
        feats: Detector: the pyramid, one ``[B, C, H, W]`` per level. Classifier: the backbone's
            outputs as
            mmpretrain returns them.
        image_size: ``(H, W)`` of the images in pixels.
        taps: Inner activations by the name of the module that made them.
        encoder: What a transformer encoder made of the features; DETR-like networks only.
        input_size: ``(H, W)`` of what the network was fed, with the padding at right and bottom;
            None where it is not known.
        kept: Numbers of the patches that the network saw, ``[B, K]``, in the order of its tokens;
            None where it saw all of them.
    """

    feats: tuple
    image_size: tuple[int, int]
    taps: dict[str, Tensor] = field(default_factory=dict)
    encoder: EncoderMemory | None = None
    kept: Tensor | None = None
    input_size: tuple[int, int] | None = None

    @property
    def covered(self) -> tuple[int, int]:
        """``(H, W)`` in pixels that the grids of all features stand for."""
        return self.input_size or self.image_size


@dataclass
class Probe:
    """Where both networks are asked: the teacher's proposals, without gradient.

    Attributes:
        boxes: Per image ``[K_i, 4]`` xyxy pixels.
        scores: Per image ``[K_i]`` objectness of the teacher in [0, 1].
        moved: Of a cascade: for each stage after the first, where the teacher moved the boxes.
    """

    boxes: list[Tensor]
    scores: list[Tensor]
    moved: tuple[list[Tensor], ...] = field(default=(), kw_only=True)


@dataclass
class Response:
    """Differentiable outputs before any suppression.

    Attributes:
        logits: Classifier: ``[B, classes]``. Two-stage: ``[sum K_i, classes + 1]``, background
            last, at the
            probe's boxes; of a cascade the mean of its stages, as it predicts.
        deltas: Two-stage: box regression at the probe's boxes, ``[sum K_i, 4]`` or ``[sum K_i, 4 *
            classes]``, in
            the coder's normalised units; of a cascade those of its last stage.
        dense_logits: Two-stage: RPN objectness logits, per level ``[B, A, H, W]``.
        dense_deltas: Two-stage: RPN box regression, per level ``[B, 4 * A, H, W]``.
        stages: Two-stage: logits and deltas of every stage of the RoI head; one without a cascade.
        find_boxes: Detectors: makes :attr:`boxes`.
        find_class_boxes: Two-stage: makes :meth:`boxes_of`.
    """

    logits: Tensor
    deltas: Tensor | None = None
    dense_logits: tuple[Tensor, ...] | None = None
    dense_deltas: tuple[Tensor, ...] | None = None
    stages: tuple[tuple[Tensor, Tensor], ...] = field(default=(), kw_only=True)
    find_boxes: Callable[[], Tensor] | None = field(default=None, repr=False, kw_only=True)
    find_class_boxes: Callable[[Tensor], Tensor] | None = field(
        default=None, repr=False, kw_only=True
    )

    @cached_property
    def boxes(self) -> Tensor | None:
        """Detectors: the box of each row of ``logits``, differentiable, ``[sum K_i, 4]`` xyxy."""
        return None if self.find_boxes is None else self.find_boxes()

    def boxes_of(self, labels: Tensor) -> Tensor | None:
        """:attr:`boxes`, where each class has its own those of these classes ``[sum K_i]``."""
        return self.boxes if self.find_class_boxes is None else self.find_class_boxes(labels)


@dataclass
class Observation:
    """One network's view of a batch; ``probe`` and ``response`` are None when no head asked.

    Attributes:
        find_detections: The teacher's only: makes its final detections.
        own_loss: The student's only: its toolbox's training loss on objects given per image, by
            mmdet's names.
        through: A dense one-stage teacher's only: the answers of the rest of its head to features
            of a student's (:meth:`~mmdfkd.adapters.OneStageAdapter.through`).
        find_masks: Of a network with a mask head: mask logits of each of its stages at boxes of
            each image.
        others: The teacher's only: what the run's extra teachers say about the same images, as
            many as the heads ask for, each with a response.
    """

    memory: Memory
    probe: Probe | None = None
    response: Response | None = None
    find_detections: Callable[[], list[InstanceData]] | None = field(default=None, repr=False)
    own_loss: Callable[[list[InstanceData]], dict[str, Tensor]] | None = field(
        default=None, repr=False
    )
    through: Callable[..., Any] | None = field(default=None, repr=False)
    find_masks: Callable[[list[Tensor]], list[Tensor]] | None = field(default=None, repr=False)
    others: tuple['Observation', ...] = ()

    @cached_property
    def detections(self) -> list[InstanceData]:
        """Final detections of each image (``bboxes``, ``scores``, ``labels``), when asked for."""
        return self.find_detections()
