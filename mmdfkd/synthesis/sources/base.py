from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.observation import Targets
from mmdfkd.datasets.renderers.stream import stream


class SyntheticSource(BaseModule):
    """Where the images of a training step come from.

    A source is prepared once, refreshed at the start of every step and drawn from once a step. What
    :meth:`draw` returns for a sample is a function of ``(seed, g)`` and of the source's state; it
    never touches the global random generators (use
    :func:`mmdfkd.datasets.renderers.stream.stream`). State that a resumed run needs and that does
    not follow from config and seed lies in buffers, so that it is in the checkpoint.

    Attributes:
        needs_items: Whether :meth:`draw` takes its images from the dataset's items; else ``g`` is
            enough.
        reads_images: Whether it reads image files that somebody has; a run with it is not
            data-free.
        gives_answers: Whether what :meth:`draw` says of its images may hold the teacher's answers
            (``Targets.answers``): a training step whose heads read nothing else does without the
            teacher then.
        passes_on: Whether it makes no image itself: it mixes, or keeps, those of other sources.

    A source holds neither network: both are handed to it, and it leaves them exactly as they were
    (:func:`mmdfkd.synthesis.frozen.frozen`).
    """

    needs_items = False
    passes_on = False
    reads_images = False
    gives_answers = False

    def __init__(self) -> None:
        super().__init__()
        self.seed = 0
        self.image_size: tuple[int, int] | None = None
        self.device = torch.device('cpu')
        #: Where the run keeps images that do not fit into memory or are worth keeping.
        self.folder: Path | None = None

    @property
    def self_contained(self) -> bool:
        """Whether :meth:`draw` follows from seed and index alone: no teacher, at any step."""
        return type(self).refresh is SyntheticSource.refresh

    def prepare(
        self,
        teacher: Adapter,
        *,
        seed: int,
        image_size: tuple[int, int],
        device: torch.device | str,
    ) -> None:
        """Get ready, before the first step and after the teacher has its weights.

        Called in a resumed run too, before or after the state is loaded: it must not touch loaded
        state.

        Args:
            teacher (Adapter): The teacher.
            seed (int): Seed of everything random here.
            image_size (tuple[int, int]): Height and width in pixels.
            device (torch.device | str): Where images are wanted.
        """
        self.seed = int(seed)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.device = torch.device(device)

    def fill(self, teacher: Adapter) -> None:
        """Make what is made before the first step; not called in a resumed run.

        After it :meth:`draw` works, so that the student's start can be taken on the run's images.

        Args:
            teacher (Adapter): The teacher.
        """

    def refresh(self, teacher: Adapter, student: Adapter, iteration: int) -> dict[str, float]:
        """Spend the synthesis budget of one step; nothing for a source that does not learn.

        Args:
            teacher (Adapter): The teacher.
            student (Adapter): The student, as it is before the step.
            iteration (int): Number of steps done.

        Returns:
            dict[str, float]: Values to log.
        """
        return {}

    @abstractmethod
    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """The images of a step.

        Args:
            items (list[dict]): The dataset's samples, each with ``g`` and perhaps ``image``.

        Returns:
            tuple[Tensor, Targets]: RGB in [0, 1], ``[B, 3, H, W]`` on the device, without gradient;
                and what they
            are meant to show, empty where nothing in particular.
        """

    def draw_for(self, items: list[dict], labels: np.ndarray) -> Tensor:
        """Images to start from when each is to show a given class.

        Whatever :meth:`draw` gives, unless overridden.

        Args:
            items (list[dict]): As in :meth:`draw`.
            labels (np.ndarray): The class wanted of each, ``[B]``.
        """
        return self.draw(items)[0]

    def on_collapse(self, reasons: Sequence[str]) -> str | None:
        """Draw less of what has collapsed and more of what cannot, or make other images.

        :class:`mmdfkd.engine.SyntheticQualityHook` calls it on all processes when its alarm goes
        off, between two steps. What it changes must be in the state, so that a resumed run goes on
        alike.

        Args:
            reasons (Sequence[str]): What has: ``'coverage'``, ``'duplicates'``, ``'confidence'``
                or ``'divergence'``.

        Returns:
            str | None: What was changed, for the log; None for a source that has nothing to
                change.
        """
        return None

    def rng(self, purpose: str, g: int) -> np.random.Generator:
        """The random numbers of sample ``g`` for one purpose."""
        return stream(purpose, self.seed, int(g))
