"""Image files that somebody has: which there are, and how they become images of a run."""

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
        ValueError: If it cannot be read; says why.
    """
    image, reason = None, 'no decoder knows it, or it is damaged'
    try:
        if os.path.getsize(path):
            image = mmcv.imread(str(path), flag='color', channel_order='bgr')
        else:
            reason = 'it is empty'
    except cv2.error:
        pass
    except Exception as error:  # Other decoders have their own.
        reason = f'{type(error).__name__}: {error}'
    if image is None or image.ndim != 3 or not image.size:
        raise ValueError(reason)
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
