"""Cut the images of a COCO set into square tiles, for objects that are small in large images."""

import argparse
import json
import sys
from collections.abc import Sequence
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


def tile_split(args: argparse.Namespace, split: str) -> tuple[int, int]:
    """Write the tiles of one split.

    Returns:
        tuple[int, int]: Tiles and boxes (without crowds).

    Raises:
        FileNotFoundError: If an image is missing.
    """
    content = json.loads((args.source / 'annotations' / f'instances_{split}.json').read_text())
    made = dict(content, images=[], annotations=[])
    if args.merge:
        made['categories'] = [dict(id=1, name=args.merge)]
    found: dict[int, list[dict]] = {}
    for one in content['annotations']:
        found.setdefault(one['image_id'], []).append(one)
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
                # With its folders: other images may have the same stem.
                stem = '_'.join(Path(entry['file_name']).with_suffix('').parts)
                name = f'{stem}_{x}_{y}.png'
                cv2.imwrite(str(args.out / 'images' / name), tile)
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
    path = args.out / 'annotations' / f'instances_{split}.json'
    path.write_text(json.dumps(made))
    return len(made['images']), sum(not one['iscrowd'] for one in made['annotations'])


def main() -> None:
    """Write the tiles of every split, or say in one line why not."""
    args = parse_args()
    if not 0 <= args.overlap < args.size:
        sys.exit(f'error: --overlap {args.overlap} must be below --size {args.size}')
    if not 0 <= args.least <= 1:
        sys.exit(f'error: --least {args.least} is a share, from 0 to 1')
    for folder in ('annotations', 'images'):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    try:
        for split in args.splits:
            tiles, boxes = tile_split(args, split)
            print(f'{split}: {tiles} tiles, {boxes} boxes')
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
