"""Pictures of a set of images on disk."""

import json
import math
from pathlib import Path

import mmcv
import numpy as np

from mmdfkd.evaluation import Annotation, spread

from .draw import fit, tile
from .grids import panel

_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.webp'}


def _described(folder: Path) -> tuple[list[tuple[Path, Annotation | None]], list[str]]:
    """Files with what is said of them, and class names."""
    labels, instances = folder / 'labels.json', folder / 'annotations' / 'instances.json'
    if labels.is_file():
        content = json.loads(labels.read_text(encoding='utf-8'))
        found = [
            (
                folder / name,
                Annotation(np.array(one['labels'][:1]), np.array(one['probabilities'][:1])),
            )
            for name, one in content['images'].items()
        ]
        return found, content['classes']
    if instances.is_file():
        content = json.loads(instances.read_text(encoding='utf-8'))
        place = {one['id']: i for i, one in enumerate(content['categories'])}
        boxes: dict[int, list[dict]] = {one['id']: [] for one in content['images']}
        for one in content['annotations']:
            boxes[one['image_id']].append(one)
        found = []
        for image in content['images']:
            own = boxes[image['id']]
            xywh = np.array([one['bbox'] for one in own], np.float32).reshape(-1, 4)
            xywh[:, 2:] += xywh[:, :2]
            kinds = np.array([place[one['category_id']] for one in own], int)
            scores = np.array([one.get('score', 1.0) for one in own], np.float32)
            path = folder / 'images' / image['file_name']
            found.append((path, Annotation(kinds, scores, xywh)))
        return found, [one['name'] for one in content['categories']]
    files = sorted(p for p in folder.rglob('*') if p.suffix.lower() in _SUFFIXES)
    return [(path, None) for path in files], []


def folder_grid(
    folder: str | Path, count: int = 36, width: int = 1280
) -> tuple[np.ndarray, int, int]:
    """A grid of images of a set, evenly spread over it, with their labels or boxes.

    Args:
        folder (str | Path): What ``tools/synthesize.py`` has written, or any folder of images,
            which are then drawn without labels.
        count (int): Most images.
        width (int): About how wide the grid becomes, pixels.

    Returns:
        tuple[np.ndarray, int, int]: The picture, how many images are in it, and how many there are.

    Raises:
        FileNotFoundError: If there is no image.
    """
    folder = Path(folder)
    found, names = _described(folder)
    if not found:
        raise FileNotFoundError(f'{folder} holds no image ({", ".join(sorted(_SUFFIXES))}).')
    chosen = [found[i] for i in spread(len(found), count)]
    columns = max(1, math.ceil(math.sqrt(len(chosen))))
    side = min(384, width // columns)
    panels = []
    for path, seen in chosen:
        image = mmcv.imread(path, channel_order='rgb')
        panels.append(fit(image, side)[0] if seen is None else panel(image, seen, names, side))
    return tile(panels, columns), len(chosen), len(found)
