"""Convert a plain ViT's checkpoint to mmpretrain's names, or to those of a ViTDet."""

import argparse
import sys
from pathlib import Path

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.checkpoint import read_checkpoint, save_tensors, unwrap_state_dict
from mmdfkd.utils.convert import convert_vit
from mmdfkd.utils.key_report import check_keys
from mmdfkd.utils.launch import fail_clearly


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='Reads timm, facebook (DeiT, MAE), Hugging Face (ViT, DeiT), detectron2 and mmdet '
        '(ViTDet) and mmpretrain: .pth, .bin, .pkl and .safetensors. Nothing in a file is run.',
    )
    parser.add_argument('source', metavar='SRC', help='the checkpoint')
    parser.add_argument('out', metavar='DST', help='where the converted file goes')
    parser.add_argument(
        '--to',
        choices=['mmpretrain', 'vitdet', 'vitdet-detector'],
        default='mmpretrain',
        help='a classifier, the backbone mmdfkd.ViTDet, or a whole two-stage detector with it '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--config',
        help='a config of the network it is for: every missing, unexpected and mismatched key is '
        'named, and nothing is written unless all fit',
    )
    parser.add_argument(
        '--drop', nargs='+', default=[], metavar='KEY', help="keys, in timm's names, to leave out"
    )
    parser.add_argument('--overwrite', action='store_true', help='replace DST')
    return parser.parse_args()


def check_against(config: str, weights: dict, to: str) -> str:
    """Compare converted weights with a network; for ``'vitdet'`` with its backbone alone.

    Args:
        config (str): The whole config of an mmdet or mmpretrain model.
        weights (dict): Converted weights.
        to (str): As of :func:`~mmdfkd.utils.convert.convert_vit`.

    Returns:
        str: What matched.

    Raises:
        CheckpointMismatchError: If anything differs.
    """
    from mmdfkd.distillers import build_network, load_config

    own = build_network(load_config(config)).state_dict()
    if to == 'vitdet':
        own = {k: v for k, v in own.items() if k.startswith('backbone.')}
    # A classifier-free file, such as MAE's, is for the backbone.
    allowed = () if any(k.startswith('head.') for k in weights) else ('head.*',)
    # ViTDet starts relative positions that a file lacks at zero; a detector's file has them.
    allowed += () if to == 'vitdet-detector' else ('*.rel_pos_?',)
    return str(check_keys(own, weights, what=config, allow_missing=allowed))


def main() -> None:
    """Convert, compare, write."""
    args = parse_args()
    if Path(args.out).exists() and not args.overwrite:
        raise ValueError(f'{args.out} exists; give --overwrite to replace it.')
    result = convert_vit(unwrap_state_dict(read_checkpoint(args.source)), args.to, args.drop)
    print(result)
    if args.config:
        print(check_against(args.config, result.weights, args.to))
    save_tensors(result.weights, args.out, dict(converted_from=result.family))
    print(args.out)


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
