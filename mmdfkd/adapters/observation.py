"""What one network says about a batch of images."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Targets:
    """What a synthetic image is meant to show.

    Attributes:
        labels: Class indices ``[B]`` (classification), or None.
        boxes: Per image, boxes ``[N, 4]`` as xyxy pixels (detection), or None.
        box_labels: Per image, class indices ``[N]`` of the boxes, or None.
        plan: What the adapter derived from the boxes on first use (they do not move afterwards).
    """

    labels: Tensor | None = None
    boxes: list[Tensor] | None = None
    box_labels: list[Tensor] | None = None
    plan: list | None = field(default=None, repr=False)


@dataclass
class Memory:
    """What a network computes once per image, before its predictions.

    Attributes:
        feats: Detector: the pyramid, one ``[B, C, H, W]`` per level. Classifier: the backbone's
            outputs as
            mmpretrain returns them.
        image_size: ``(H, W)`` of the images in pixels.
        taps: Inner activations by the name of the module that made them.
    """

    feats: tuple
    image_size: tuple[int, int]
    taps: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Probe:
    """Where both networks are asked: the teacher's proposals, without gradient.

    Attributes:
        boxes: Per image ``[K_i, 4]`` xyxy pixels.
        scores: Per image ``[K_i]`` objectness of the teacher in [0, 1].
    """

    boxes: list[Tensor]
    scores: list[Tensor]


@dataclass
class Response:
    """Differentiable outputs before any suppression.

    Attributes:
        logits: Classifier: ``[B, classes]``. Two-stage: ``[sum K_i, classes + 1]``, background
            last, at the
            probe's boxes.
        deltas: Two-stage: box regression at the probe's boxes, ``[sum K_i, 4]`` or ``[sum K_i, 4 *
            classes]``, in
            the coder's normalised units.
        dense_logits: Two-stage: RPN objectness logits, per level ``[B, A, H, W]``.
        dense_deltas: Two-stage: RPN box regression, per level ``[B, 4 * A, H, W]``.
    """

    logits: Tensor
    deltas: Tensor | None = None
    dense_logits: tuple[Tensor, ...] | None = None
    dense_deltas: tuple[Tensor, ...] | None = None


@dataclass
class Observation:
    """One network's view of a batch; ``probe`` and ``response`` are None when no head asked."""

    memory: Memory
    probe: Probe | None = None
    response: Response | None = None
