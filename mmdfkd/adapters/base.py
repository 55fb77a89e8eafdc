from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .normalizer import Normalizer
from .observation import Memory, Observation, Probe, Response, Targets
from .own_loss import own_loss
from .taps import tapped


class Adapter(ABC):
    """How to run one family of networks; stateless around the network.

    Args:
        net (nn.Module): An mmdet or mmpretrain model.
        normalizer (Normalizer): From images in [0, 1] to the network's input.
    """

    #: Name of the family in messages and reports.
    family: str
    #: Networks of the family, for messages.
    examples = ''
    #: Whether :meth:`box_sizes` needs images.
    sizes_from_images = False

    def __init__(self, net: nn.Module, normalizer: Normalizer) -> None:
        self.net = net
        self.normalizer = normalizer

    @classmethod
    @abstractmethod
    def supports(cls, net: nn.Module) -> bool:
        """Whether this adapter can run ``net``."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of foreground classes."""

    @abstractmethod
    def features(self, inputs: Tensor) -> tuple:
        """Run backbone and neck on normalised ``inputs`` ``[B, 3, H, W]``."""

    def encode(self, images: Tensor, taps: Sequence[str] = ()) -> Memory:
        """Compute the features once.

        Args:
            images (Tensor): RGB in [0, 1], ``[B, 3, H, W]``.
            taps (Sequence[str]): Dotted names of modules of the network whose outputs to keep.

        Returns:
            Memory: Features and taps; hooks are removed before it returns.
        """
        size = (images.shape[-2], images.shape[-1])
        with tapped(self.net, taps) as caught:
            inputs = self.normalizer(images)
            feats = self.features(inputs)
        return Memory(feats, size, caught, input_size=(inputs.shape[-2], inputs.shape[-1]))

    def propose(self, memory: Memory, targets: Targets | None = None) -> Probe | None:
        """Choose where both networks are asked (teacher only, no gradient); None for no choice."""
        return None

    @abstractmethod
    def answer(self, memory: Memory, probe: Probe | None) -> Response:
        """Differentiable outputs at the probe.

        From this or, where the widths agree, the other network's memory.
        """

    @abstractmethod
    def target_loss(self, memory: Memory, targets: Targets) -> Tensor:
        """How far each answer is from ``targets``: ``[B]``, differentiable to the pixels."""

    @abstractmethod
    def class_votes(self, memory: Memory) -> Tensor:
        """How much of each class it sees: ``[B, num_classes]`` in [0, 1], no gradient."""

    def class_places(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Where it sees each class most, and how surely; detectors only.

        Returns:
            tuple[Tensor, Tensor]: Votes ``[B, num_classes]`` in [0, 1] and boxes ``[B, num_classes,
            4]``, xyxy pixels; no gradient. An image without proposals has zeros.

        Raises:
            TypeError: For a family that predicts no boxes.
        """
        raise TypeError(f'A {self.family} network predicts no boxes, so it has no layouts.')

    def box_sizes(self, memory: Memory | None = None) -> Tensor:
        """Widths and heights in pixels that it is built to find, ``[K, 2]``; detectors only.

        Args:
            memory (Memory, optional): Some images; a family without anchors reads them there.

        Raises:
            TypeError: For a family that predicts no boxes.
            ValueError: Without images, for a family that needs them.
        """
        raise TypeError(f'A {self.family} network predicts no boxes, so it has no layouts.')

    @property
    def detects(self) -> bool:
        """Whether the family predicts boxes: whether it has a :meth:`detect` of its own."""
        return type(self).detect is not Adapter.detect

    def detect(self, memory: Memory) -> list[InstanceData]:
        """Final detections of each image (``bboxes``, ``scores``, ``labels``); detectors only."""
        raise TypeError(f'A {self.family} network predicts no boxes.')

    def masks(self, memory: Memory, boxes: list[Tensor]) -> list[Tensor]:
        """Mask logits at boxes of each image, ``[sum K_i, classes, h, w]`` for each stage.

        Raises:
            TypeError: For a family without mask heads.
        """
        raise TypeError(f'A {self.family} network has no mask head.')

    def own_loss(self, memory: Memory, objects: Sequence[InstanceData]) -> dict[str, Tensor]:
        """What mmdet's own training would say, were these the labels; detectors only.

        Args:
            memory (Memory): The network's own, with gradient.
            objects (Sequence[InstanceData]): Per image ``bboxes`` ``[N, 4]`` (xyxy pixels),
                ``labels`` ``[N]`` and, for networks with a mask head, ``masks``; may be empty.

        Returns:
            dict[str, Tensor]: Scalars by mmdet's names.

        Raises:
            TypeError: For a family that predicts no boxes.
            ValueError: If the network's config has no ``train_cfg``, or masks are missing.
        """
        if not self.detects:
            raise TypeError(f'A {self.family} network predicts no boxes.')
        return own_loss(self.net, memory, objects, self.normalizer.divisor)

    @torch.no_grad()
    def observe(
        self,
        images: Tensor,
        taps: Sequence[str] = (),
        respond: bool = True,
        *,
        fresh: bool = False,
        seed: int = 0,
        serials: Sequence[int] | None = None,
    ) -> Observation:
        """Encode, propose and answer without gradient: the teacher's side of a step.

        Args:
            images (Tensor): RGB in [0, 1], ``[B, 3, H, W]``.
            taps (Sequence[str]): As in :meth:`encode`.
            respond (bool): Whether to propose and answer, too.
            fresh (bool): Whether to ask random queries, too, in a family that has queries.
            seed (int): Of the run, for a family whose probe has random parts.
            serials (Sequence[int], optional): Likewise, the global index of each image.
        """
        memory = self.encode(images, taps)
        later = dict(
            find_detections=partial(self.detect, memory), find_masks=partial(self.masks, memory)
        )
        if not respond:
            return Observation(memory, **later)
        probe = self.propose(memory)
        return Observation(memory, probe, self.answer(memory, probe), **later)
