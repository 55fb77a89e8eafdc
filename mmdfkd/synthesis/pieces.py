"""Where a teacher sees its classes in a set of images, and where it might."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

#: Largest side of an object, as a share of the image's: a whole one with some ground around it.
LARGEST = 0.9


@dataclass
class Pieces:
    """Where a teacher sees its classes in a set of images.

    Attributes:
        images: ``[N, 3, H, W]`` uint8.
        votes: ``[N, classes]``, how surely it sees each class in each image, in [0, 1]; 0 where it
            does not.
        boxes: ``[N, classes, 4]`` xyxy pixels, where it does so most.
    """

    images: Tensor
    votes: np.ndarray
    boxes: np.ndarray

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return tuple(self.images.shape[-2:])

    def best(self, label: int, count: int) -> np.ndarray:
        """The images in which the class is seen most surely, best first; any if in none."""
        order = np.argsort(-self.votes[:, label], kind='stable')[:count]
        seen = order[self.votes[order, label] > 0]
        return seen if len(seen) else order

    def completed(self, sizes: np.ndarray, least_size: float, rng: np.random.Generator) -> 'Pieces':
        """A box for every class in every image: of a given size at a random place where none is.

        A teacher of large objects, of many classes or of sharp judgement proposes nothing in some
        images; and what it proposes may be a sliver. Sizes that it is built to find then stand in,
        with a vote of 0.

        Args:
            sizes (np.ndarray): Widths and heights to choose from in pixels, ``[K, 2]``.
            least_size (float): Boxes that cannot be enlarged to this side within the image, or only
                more than twofold, are replaced too.
            rng (np.random.Generator): The only source of chance.
        """
        side = self.boxes[..., 2:] - self.boxes[..., :2]
        limit = LARGEST * np.array(self.image_size[::-1], np.float64)
        least = side.min(-1)
        shape = side / np.maximum(least, 1e-6)[..., None]
        fits = (shape * least_size <= limit).all(-1) & (least >= least_size / 2)
        missing = ~fits | (self.votes <= 0)
        possible = sizes[(sizes <= limit).all(1)]
        if not len(possible):
            possible = sizes * (limit / sizes).min(1, keepdims=True)
        chosen = possible[rng.integers(len(possible), size=int(missing.sum()))]
        corner = rng.random(chosen.shape) * (limit / LARGEST - chosen)
        votes, boxes = self.votes.copy(), self.boxes.copy()
        votes[missing] = 0
        boxes[missing] = np.concatenate([corner, corner + chosen], 1)
        return Pieces(self.images, votes, boxes)
