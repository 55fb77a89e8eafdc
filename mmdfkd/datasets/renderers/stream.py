"""Random streams that are a function of what they are for, not of when they are asked."""

from zlib import crc32

import numpy as np


def stream(purpose: str, *key: int) -> np.random.Generator:
    """A fresh generator for one purpose and key, independent of every global generator.

    Args:
        purpose (str): What the numbers are for; different purposes never share numbers.
        *key (int): Non-negative integers, such as a seed and a sample's global index.

    Returns:
        np.random.Generator: The same stream for the same arguments, in any process.
    """
    return np.random.default_rng([crc32(purpose.encode()), *key])
