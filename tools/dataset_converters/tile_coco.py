"""Cut the images of a COCO set into square tiles, for objects that are small in large images."""

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'source', type=Path, help='with annotations/instances_<split>.json, images/'
    )
    parser.add_argument('out', type=Path, help='laid out likewise')
    parser.add_argument('--splits', nargs='+', default=['train', 'val'])
    parser.add_argument('--size', type=int, default=320, help='side of a tile in pixels')
    parser.add_argument('--overlap', type=int, default=64, help='least overlap of neighbours')
    parser.add_argument(
        '--least',
        type=float,
        default=0.4,
        help='share of a box that a tile must show; a box shown less is marked as crowd, which '
        'training leaves out and COCO evaluation ignores',
    )
    parser.add_argument('--merge', metavar='NAME', help='make one category of all')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the annotations of these splits in out'
    )
    return parser.parse_args()


def starts(length: int, size: int, overlap: int) -> list[int]:
    """Where the tiles along one side begin: evenly spread, the last one at the end.

    Args:
        length (int): Pixels of the side.
        size (int): Pixels of a tile.
        overlap (int): Least overlap of two neighbours.
    """
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def tile_boxes(boxes: Sequence[Sequence[float]], x: int, y: int, size: int) -> np.ndarray:
    """Boxes ``(x, y, w, h)`` as a tile shows them, and the share that it shows: ``[N, 5]``."""
    one = np.asarray(boxes, np.float64).reshape(-1, 4)
    low = (one[:, :2] - (x, y)).clip(0, size)
    high = (one[:, :2] + one[:, 2:] - (x, y)).clip(0, size)
    sides = high - low
    share = sides.prod(1) / one[:, 2:].prod(1).clip(1e-9)
    return np.concatenate([low, sides, share[:, None]], 1)


def annotations_of(folder: Path, split: str) -> Path:
    """The annotation file of a split."""
    return folder / 'annotations' / f'instances_{split}.json'


def read_annotations(path: Path) -> dict:
    """What an annotation file holds.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is no JSON: {error}') from error


def stems(source: Path) -> dict[Path, str]:
    """What the tiles of each image are called: its path without the suffix.

    Of images with one such name (``a/b.png`` and ``a_b.png``) the later ones have a number, too.
    All splits of the set count: a name does not depend on which of them are asked for.

    Args:
        source (Path): The set.

    Raises:
        OSError, ValueError: If an annotation file cannot be read.
    """
    plain: dict[Path, str] = {}
    for path in sorted((source / 'annotations').glob('instances_*.json')):
        for entry in read_annotations(path).get('images', ()):
            name = Path(entry['file_name'])
            # With its folders: other images may have the same stem.
            plain[name] = '_'.join(name.with_suffix('').parts)
    made: dict[Path, str] = {}
    seen, taken = set(), set(plain.values())
    for path, stem in plain.items():
        made[path] = stem
        if stem in seen:
            numbered = (f'{stem}_{number}' for number in itertools.count(2))
            made[path] = next(name for name in numbered if name not in taken)
        seen.add(stem)
        taken.add(made[path])
    return made


def write_at_once(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    ``save_image`` would do for the tiles; its imports take longer than many a set.

    Raises:
        OSError: If it cannot be written; names it.
    """
    temporary = path.with_name(path.name + '.tmp')
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(f'{path} cannot be written: {error}') from error


def tile_split(args: argparse.Namespace, split: str, names: Mapping[Path, str]) -> tuple[int, int]:
    """Write the tiles of one split, and then its annotations.

    Args:
        args (argparse.Namespace): Of the command line.
        split (str): Which.
        names (Mapping[Path, str]): Those of :func:`stems`.

    Returns:
        tuple[int, int]: Tiles and boxes (without crowds).

    Raises:
        FileNotFoundError: If an image is missing.
        OSError: If a file cannot be written.
    """
    content = read_annotations(annotations_of(args.source, split))
    made = dict(content, images=[], annotations=[])
    if args.merge:
        made['categories'] = [dict(id=1, name=args.merge)]
    found: dict[int, list[dict]] = {}
    for one in content['annotations']:
        found.setdefault(one['image_id'], []).append(one)
    # What is replaced names tiles that are about to change.
    annotations_of(args.out, split).unlink(missing_ok=True)
    for entry in content['images']:
        path = args.source / 'images' / entry['file_name']
        image = cv2.imread(str(path))
        if image is None:
            raise FileNotFoundError(f'{path} is no image.')
        own = found.get(entry['id'], [])
        for y in starts(image.shape[0], args.size, args.overlap):
            for x in starts(image.shape[1], args.size, args.overlap):
                # Tiles of one size, whatever the image's: grey beyond it.
                tile = np.full((args.size, args.size, 3), 114, np.uint8)
                part = image[y : y + args.size, x : x + args.size]
                tile[: part.shape[0], : part.shape[1]] = part
                name = f'{names[Path(entry["file_name"])]}_{x}_{y}.png'
                write_at_once(args.out / 'images' / name, cv2.imencode('.png', tile)[1].tobytes())
                number = len(made['images']) + 1
                made['images'].append(
                    dict(id=number, file_name=name, width=args.size, height=args.size)
                )
                seen = tile_boxes([one['bbox'] for one in own], x, y, args.size)
                for one, (*box, share) in zip(own, seen.tolist(), strict=True):
                    if share <= 0:
                        continue
                    made['annotations'].append(
                        dict(
                            id=len(made['annotations']) + 1,
                            image_id=number,
                            category_id=1 if args.merge else one['category_id'],
                            bbox=[round(v, 2) for v in box],
                            area=round(box[2] * box[3], 2),
                            iscrowd=int(one.get('iscrowd', 0) or share < args.least),
                        )
                    )
    write_at_once(annotations_of(args.out, split), json.dumps(made).encode())
    return len(made['images']), sum(not one['iscrowd'] for one in made['annotations'])


def main() -> None:
    """Write the tiles of every split, or say in one line why not."""
    args = parse_args()
    if not 0 <= args.overlap < args.size:
        sys.exit(f'error: --overlap {args.overlap} must be below --size {args.size}')
    if not 0 <= args.least <= 1:
        sys.exit(f'error: --least {args.least} is a share, from 0 to 1')
    folders = ('annotations', 'images')
    if any((args.out / one).resolve() == (args.source / one).resolve() for one in folders):
        sys.exit(f'error: {args.out} is the set that is cut: write the tiles elsewhere')
    for path in (annotations_of(args.out, split) for split in args.splits):
        if path.exists() and not args.overwrite:
            sys.exit(f'error: {path} exists; give --overwrite to replace it')
    try:
        names = stems(args.source)
        for folder in folders:
            (args.out / folder).mkdir(parents=True, exist_ok=True)
        for split in args.splits:
            tiles, boxes = tile_split(args, split, names)
            print(f'{split}: {tiles} tiles, {boxes} boxes')
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
