"""Write the embedded detection set: real handwritten digits on textured canvases, COCO format."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmdfkd.datasets.digits import DetectionSpec, write_detection  # noqa: E402


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    default = DetectionSpec()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'data' / 'digits_detection')
    parser.add_argument('--seed', type=int, default=default.seed)
    parser.add_argument('--train-images', type=int, default=default.train)
    parser.add_argument('--val-images', type=int, default=default.val)
    parser.add_argument('--size', type=int, default=default.size, help='side in pixels')
    parser.add_argument('--workers', type=int, default=2, help='processes; changes no file')
    parser.add_argument('--overwrite', action='store_true', help='write an up-to-date set anew')
    return parser.parse_args()


def main() -> None:
    """Write the set, or say in one line why not."""
    args = parse_args()
    try:
        spec = DetectionSpec(args.seed, args.train_images, args.val_images, args.size)
        write_detection(args.out, spec, workers=args.workers, overwrite=args.overwrite)
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
