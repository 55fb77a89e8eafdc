"""Publish a checkpoint: its weights alone, in half precision.

Optimiser, message hub and history are dropped; nothing but tensors and the class names stays.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.checkpoint import read_checkpoint, save_tensors, sha256, unwrap_state_dict
from mmdfkd.utils.launch import fail_clearly


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', metavar='IN', help='a checkpoint of any run')
    parser.add_argument('out', metavar='OUT', help='where the published file goes')
    parser.add_argument(
        '--dtype',
        choices=['float16', 'float32'],
        default='float16',
        help='precision of the weights; integers stay as they are (default: %(default)s)',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace OUT')
    return parser.parse_args()


def class_names(checkpoint: Mapping) -> dict:
    """The classes that a checkpoint was trained for, as its ``dataset_meta``; {} if unknown."""
    meta = checkpoint.get('meta')
    dataset = (meta.get('dataset_meta') if isinstance(meta, Mapping) else None) or {}
    classes = dataset.get('classes') or dataset.get('CLASSES')
    return dict(dataset_meta=dict(classes=[str(c) for c in classes])) if classes else {}


def publish(
    source: str | Path, out: str | Path, dtype: torch.dtype = torch.float16
) -> dict[str, torch.Tensor]:
    """Write the weights of ``source`` to ``out``.

    Args:
        source (str | Path): A checkpoint of any run.
        out (str | Path): The file to write.
        dtype (torch.dtype): Of all floating-point weights.

    Returns:
        dict[str, Tensor]: What was written.

    Raises:
        ValueError: If a weight is not finite, or does not fit into ``dtype``.
    """
    checkpoint = read_checkpoint(source)
    weights = {}
    for key, value in unwrap_state_dict(checkpoint).items():
        weights[key] = value.to(dtype) if value.is_floating_point() else value
        if value.is_floating_point() and not weights[key].isfinite().all():
            raise ValueError(
                f'{source}: {key} is not finite in {str(dtype).removeprefix("torch.")} (its '
                f'largest value is {value.abs().max().item():.3g}); publish with --dtype float32.'
            )
    save_tensors(weights, out, class_names(checkpoint))
    return weights


def main() -> None:
    """Publish, and print what a table of models needs."""
    args = parse_args()
    if Path(args.out).exists() and not args.overwrite:
        raise ValueError(f'{args.out} exists; give --overwrite to replace it.')
    weights = publish(args.checkpoint, args.out, getattr(torch, args.dtype))
    print(f'{args.out}')
    print(f'tensors  {len(weights)}, {sum(v.numel() for v in weights.values()):,} numbers')
    print(f'size     {Path(args.out).stat().st_size / 2**20:.2f} MiB')
    print(f'sha256   {sha256(args.out)}')


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
