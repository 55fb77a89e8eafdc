"""Write the embedded classification set: real handwritten digits as an image folder."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmdfkd.datasets.digits import write_classification  # noqa: E402


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'data' / 'digits_classification')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--size', type=int, default=32, help='side in pixels')
    parser.add_argument('--overwrite', action='store_true', help='write an up-to-date set anew')
    return parser.parse_args()


def main() -> None:
    """Write the set, or say in one line why not."""
    args = parse_args()
    try:
        write_classification(args.out, args.seed, args.size, overwrite=args.overwrite)
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
