"""Images that are nearly one another, found without comparing all pairs where possible."""

import cv2
import numpy as np

_SIDE = 8
BITS = 2 * _SIDE * _SIDE


def difference_hash(image: np.ndarray) -> int:
    """Which way the brightness goes between the cells of a coarse grid, in two directions.

    A small change of brightness, contrast, size or compression changes few bits.

    Args:
        image (np.ndarray): RGB uint8 ``[H, W, 3]``.

    Returns:
        int: Of :data:`BITS` bits.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    coarse = cv2.resize(grey, (_SIDE + 1, _SIDE + 1), interpolation=cv2.INTER_AREA).astype(int)
    right = coarse[:-1, 1:] > coarse[:-1, :-1]
    down = coarse[1:, :-1] > coarse[:-1, :-1]
    return int.from_bytes(np.packbits(np.concatenate([right, down])).tobytes(), 'big')


class HashFilter:
    """Takes images one after another and tells those that differ from all it took before.

    Two hashes of at most ``distance`` different bits agree in at least one of ``distance + 1``
    parts, so only images that share a part are compared.

    Args:
        distance (int): Bits by which near-duplicates differ at most, of :data:`BITS`.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        edges = np.linspace(0, BITS, distance + 2).astype(int).tolist()
        self._parts = list(zip(edges[:-1], edges[1:], strict=True))
        self._buckets: list[dict[int, list[int]]] = [{} for _ in self._parts]

    def take(self, value: int) -> bool:
        """Whether an image is unlike all taken before; if so it is taken."""
        keys = [(value >> low) & ((1 << (high - low)) - 1) for low, high in self._parts]
        for key, buckets in zip(keys, self._buckets, strict=True):
            for other in buckets.get(key, ()):
                if (value ^ other).bit_count() <= self.distance:
                    return False
        for key, buckets in zip(keys, self._buckets, strict=True):
            buckets.setdefault(key, []).append(value)
        return True


class CosineFilter:
    """As :class:`HashFilter`, by the cosine of two embeddings.

    Args:
        similarity (float): Cosine from which on two are near-duplicates.
    """

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity
        self._taken = np.zeros((0, 0), np.float32)
        self._count = 0

    def take(self, value: np.ndarray) -> bool:
        """Whether an embedding of unit length ``[D]`` is unlike all taken before."""
        if self._count and (self._taken[: self._count] @ value).max() >= self.similarity:
            return False
        if self._count == len(self._taken):
            grown = np.zeros((max(64, 2 * self._count), len(value)), np.float32)
            if self._count:
                grown[: self._count] = self._taken
            self._taken = grown
        self._taken[self._count] = value
        self._count += 1
        return True
