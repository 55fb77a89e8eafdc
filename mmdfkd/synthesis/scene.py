"""Scenes: pieces of start images in which a detector sees its classes, composed anew."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .pieces import LARGEST, Pieces

#: Room around a piece, as a share of its size: an object is known by its surroundings too.
MARGIN = 0.15
#: How much of two objects may overlap, of the smaller one.
_OVERLAP = 0.1
_TRIES = 30


@dataclass
class Scene:
    """An image and what it is to show.

    Attributes:
        image: ``[3, H, W]`` in [0, 1].
        boxes: ``[N, 4]`` xyxy pixels.
        labels: ``[N]`` class indices.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor


class SceneComposer:
    """Composes scenes: a start image as the ground, and pieces of others pasted on it.

    Classes come in whole passes over all of them, so they are balanced. A class's pieces are those
    in which the teacher sees it most, so sizes and shapes of the boxes are the teacher's own:
    nothing is known of the data but what its proposals say.

    Args:
        pieces (Pieces): What to compose of.
        rng (Callable[[str, int], np.random.Generator]): The random numbers for a purpose and an
            index, such as a source's.
        least_size (float): Least side of a box in pixels.
        boxes (tuple[int, int]): Least and most objects of a scene.
        choice (int): Pieces of each class to choose from.
        zoom (tuple[float, float]): Range of the pieces' enlargement, log-uniform.

    Raises:
        ValueError: If the image is too small for any object.
    """

    def __init__(
        self,
        pieces: Pieces,
        rng: Callable[[str, int], np.random.Generator],
        least_size: float,
        boxes: tuple[int, int] = (2, 5),
        choice: int = 24,
        zoom: tuple[float, float] = (0.8, 1.3),
    ) -> None:
        height, width = pieces.image_size
        if least_size > LARGEST * min(height, width):
            raise ValueError(
                f'No layout can be placed: an object has sides of at least {least_size:g} px and '
                f'the images are of {height} x {width} px. Enlarge the images or lower least_size.'
            )
        self.pieces = pieces
        self.rng = rng
        self.boxes = boxes
        self.zoom = zoom
        self.least_size = least_size
        classes = pieces.votes.shape[1]
        self.best = [pieces.best(label, choice) for label in range(classes)]

    def labels(self, serial: int) -> np.ndarray:
        """The classes wanted in scene ``serial``; whole passes over all classes."""
        classes = len(self.best)
        # Every so many scenes have each count once, so a place in the pass follows from the serial.
        span = self.boxes[1] - self.boxes[0] + 1
        cycle, scene = divmod(serial, span)
        counts = self.boxes[0] + self.rng('count', cycle).permutation(span)
        first = int(cycle * counts.sum() + counts[:scene].sum())
        wanted = []
        for place in range(first, first + int(counts[scene])):
            order = self.rng('pass', place // classes).permutation(classes)
            wanted.append(int(order[place % classes]))
        return np.array(wanted)

    def __call__(self, serial: int) -> Scene:
        """Scene ``serial``, a function of it and of the seed.

        Raises:
            ValueError: If not one object of it could be placed.
        """
        rng = self.rng('scene', serial)
        pieces = self.pieces
        height, width = pieces.image_size
        image = pieces.images[int(rng.integers(len(pieces.images)))].float() / 255
        boxes: list[np.ndarray] = []
        labels: list[int] = []
        for label in self.labels(serial):
            source = int(rng.choice(self.best[label]))
            box = pieces.boxes[source, label].astype(np.float64)
            place = self._place(box, boxes, (height, width), rng)
            if place is None:
                continue
            _paste(image, pieces.images[source].float() / 255, box, place)
            boxes.append(place)
            labels.append(int(label))
        if not boxes:
            raise ValueError(
                f'Layout {serial} cannot be placed: no box of the shapes of its pieces with sides '
                f'of at least {self.least_size:g} px fits an image of {height} x {width} px. '
                'Enlarge the images or lower least_size.'
            )
        return Scene(
            image, torch.tensor(np.stack(boxes), dtype=torch.float32), torch.tensor(labels)
        )

    def _place(
        self,
        box: np.ndarray,
        taken: list[np.ndarray],
        size: tuple[int, int],
        rng: np.random.Generator,
    ) -> np.ndarray | None:
        """A box of this shape where there is room; smaller ones are tried where there is none."""
        side = np.maximum(box[2:] - box[:2], 1e-3)
        side = side * np.exp(rng.uniform(*np.log(self.zoom)))
        limit = LARGEST * np.array(size[::-1], np.float64)
        side = side * min(1.0, float((limit / side).min()))
        if side.min() < self.least_size:
            side = side * min(self.least_size / side.min(), float((limit / side).min()))
        for trial in range(_TRIES):
            if trial and trial % 10 == 0:
                side = side * 0.7
            if side.min() < 0.99 * self.least_size:
                return None
            corner = rng.uniform(0, 1, 2) * (np.array(size[::-1]) - side)
            place = np.concatenate([corner, corner + side])
            if all(_overlap(place, other) <= _OVERLAP for other in taken):
                return place
        return None


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over the smaller area."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if (sides <= 0).any():
        return 0.0
    areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
    return float(sides.prod() / max(min(areas), 1e-9))


def _paste(image: Tensor, source: Tensor, box: np.ndarray, place: np.ndarray) -> None:
    """Copy ``box`` of ``source`` with its margin to ``place`` of ``image``, edges faded."""
    height, width = image.shape[-2:]
    margin = MARGIN * (place[2:] - place[:2])
    x0, y0 = np.floor(place[:2] - margin).astype(int)
    x1, y1 = np.ceil(place[2:] + margin).astype(int)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    x = torch.arange(left, right) + 0.5
    y = torch.arange(top, bottom) + 0.5
    scale = (box[2:] - box[:2]) / (place[2:] - place[:2])
    at_x = ((x - place[0]) * scale[0] + box[0]) / source.shape[-1] * 2 - 1
    at_y = ((y - place[1]) * scale[1] + box[1]) / source.shape[-2] * 2 - 1
    grid = torch.stack(torch.meshgrid(at_y, at_x, indexing='ij')[::-1], -1)[None].to(source)
    piece = F.grid_sample(source[None], grid, padding_mode='reflection', align_corners=False)[0]
    inner = torch.outer(
        _fade(y, place[1], place[3], margin[1]), _fade(x, place[0], place[2], margin[0])
    ).to(image)
    view = image[:, top:bottom, left:right]
    view.copy_(view + (piece - view) * inner)


def _fade(at: Tensor, low: float, high: float, margin: float) -> Tensor:
    """1 inside ``[low, high]``, falling to 0 over the margin."""
    outside = torch.maximum(low - at, at - high).clamp_min(0)
    return (1 - outside / max(margin, 1e-6)).clamp(0, 1)


def neighbourhood(boxes: list[Tensor], size: tuple[int, int], outside: float) -> Tensor:
    """How far each pixel may move: 1 in and around boxes, ``outside`` elsewhere, ``[B, 1, H, W]``.

    Args:
        boxes (list[Tensor]): Per image ``[N, 4]`` xyxy pixels.
        size (tuple[int, int]): Height and width.
        outside (float): In [0, 1].
    """
    height, width = size
    maps = []
    for own in boxes:
        y = torch.arange(height, device=own.device) + 0.5
        x = torch.arange(width, device=own.device) + 0.5
        free = torch.full((height, width), float(outside), device=own.device)
        for x0, y0, x1, y1 in own.tolist():
            fade = torch.outer(
                _fade(y, y0, y1, 2 * MARGIN * (y1 - y0)), _fade(x, x0, x1, 2 * MARGIN * (x1 - x0))
            )
            free = torch.maximum(free, fade)
        maps.append(free)
    return torch.stack(maps)[:, None]
