"""Write the images of a distillation config's source as an ordinary set with the teacher's labels.

    python tools/synthesize.py configs/dfkd_deit.py data/synthetic_digits --num 5000

Of a classifier an image folder (a folder for each class, and the soft answers in labels.json), of a
detector a COCO set (images/ and annotations/instances.json). Any pipeline of the toolboxes trains
on it. A call that was killed goes on with --resume and ends with the same files.
"""

import argparse
import sys
from pathlib import Path

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.launch import Options, fail_clearly, read_config, use_all_cores


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of the config of a data-free run')
    parser.add_argument('out', type=Path, help='folder of the set')
    parser.add_argument('--num', type=int, default=1000, help='number of images')
    parser.add_argument('--resume', action='store_true', help='go on with what is there')
    parser.add_argument('--seed', type=int, help="the config's by default")
    parser.add_argument('--batch', type=int, help="images of a step; the config's batch size")
    parser.add_argument('--topk', type=int, default=5, help="classes kept of a classifier's answer")
    parser.add_argument(
        '--threshold', type=float, default=0.3, help="least score of a detector's objects"
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, help='change settings: key=value'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Make the set."""
    args = parse_args(argv)
    use_all_cores()
    from mmdfkd.engine.synthesize import synthesize

    cfg = read_config(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    synthesize(
        cfg,
        args.out,
        args.num,
        resume=args.resume,
        seed=args.seed,
        batch=args.batch,
        topk=args.topk,
        threshold=args.threshold,
    )


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
