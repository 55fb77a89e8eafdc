"""Image files that somebody has: which there are, and how they become images of a run."""

import hashlib
import os
from pathlib import Path

import cv2
import mmcv
import numpy as np

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


def image_files(root: str | Path) -> list[str]:
    """Image files in a folder and all folders below it.

    Args:
        root (str | Path): Such as an image folder with a folder for each class, or a COCO set.

    Returns:
        list[str]: Paths relative to ``root``, with ``/``, sorted; hidden ones are left out.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'There is no folder {root} to take images from.')
    found = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith('.')]
        base = Path(folder).relative_to(root)
        found += [
            (base / name).as_posix()
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith('.')
        ]
    return sorted(found)


def read_image(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Read an image with mmcv's reader, scale it so that it covers ``size`` and cut its middle out.

    Args:
        path (str | Path): The file.
        size (tuple[int, int]): Height and width in pixels.

    Returns:
        np.ndarray: RGB uint8 ``[H, W, 3]``.

    Raises:
        ValueError: If it cannot be read, or its end is missing; says why.
    """
    return read_with_digest(path, size)[0]


def read_with_digest(path: str | Path, size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """As :func:`read_image`, with the SHA-256 of the file: it is opened once.

    Raises:
        ValueError: If it cannot be read, or its end is missing; says why.
    """
    image, digest, reason = None, '', 'no decoder knows it, or it is damaged'
    try:
        if os.path.getsize(path):
            content = Path(path).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if is_cut(content):
                # OpenCV would fill the rest with grey.
                reason = 'its end is missing'
            else:
                image = mmcv.imfrombytes(content, flag='color', channel_order='bgr')
        else:
            reason = 'it is empty'
    except cv2.error:
        pass
    except Exception as error:  # Other decoders have their own.
        reason = f'{type(error).__name__}: {error}'
    if image is None or image.ndim != 3 or not image.size:
        raise ValueError(reason)
    return _covering(image, size), digest


def is_cut(content: bytes) -> bool:
    """Whether a JPEG or PNG file lacks its end marker; False for other files.

    Args:
        content (bytes): The file. What follows the marker does not matter, as cameras append more.
    """
    if content.startswith(b'\x89PNG\r\n\x1a\n'):
        return b'IEND\xaeB`\x82' not in content
    if not content.startswith(b'\xff\xd8'):
        return False
    # Past the segments before the pixels: a thumbnail in one of them has an end of its own.
    at = 2
    while content[at : at + 1] == b'\xff' and content[at + 1 : at + 2] != b'\xda':
        length = int.from_bytes(content[at + 2 : at + 4], 'big')
        at += 1 if content[at + 1 : at + 2] == b'\xff' else 2 + length
    return content.find(b'\xff\xd9', at) < 0


def _covering(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """RGB of a BGR image ``[h, w, 3]``, scaled so that it covers ``size``, its middle cut out."""
    h, w = image.shape[:2]
    scale = max(size[0] / h, size[1] / w)
    if scale != 1:
        # At least the size in each direction, whatever the rounding.
        wanted = max(size[1], round(w * scale)), max(size[0], round(h * scale))
        # Averages pixels where it shrinks; nothing aliases.
        how = 'area' if scale < 1 else 'bilinear'
        image = mmcv.imresize(image, wanted, interpolation=how)
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1], ::-1])
