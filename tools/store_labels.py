"""Store a classifier's answers to all samples of a run, to train without it.

    python tools/store_labels.py configs/my_run.py labels.pth --top-k 100

Then, in that config, teacher=dict(config=..., labels='labels.pth') without its checkpoint.
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
    parser.add_argument('config', help='path of the config of a distillation run')
    parser.add_argument('out', help='the file to write')
    parser.add_argument(
        '--num',
        type=int,
        help="samples; those of the config's iterations by default, needed where it counts epochs",
    )
    parser.add_argument('--top-k', type=int, default=100, help='classes kept of each answer')
    parser.add_argument('--seed', type=int, help="the config's by default")
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, help='change settings: key=value'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Store the labels."""
    args = parse_args(argv)
    if Path(args.out).exists() and not args.overwrite:
        raise ValueError(f'{args.out} exists; give --overwrite to replace it.')
    use_all_cores()
    from mmdfkd.engine.store_labels import store_labels

    cfg = read_config(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    store_labels(cfg, args.out, args.num, args.top_k, seed=args.seed)


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
