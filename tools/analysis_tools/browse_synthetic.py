"""Draw the images of a config's source, or of a set that tools/synthesize.py wrote.

    python tools/analysis_tools/browse_synthetic.py configs/dfkd_vitdet.py --out images.png
    python tools/analysis_tools/browse_synthetic.py data/synthetic_digits --out images.png

Of a config: the first images that a run draws, with what the teacher sees in them and where it
looks.
Of a folder: images spread over the set, with the labels or boxes of its files.
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
    parser.add_argument('what', type=Path, help='config of a data-free run, or folder of a set')
    parser.add_argument('--out', type=Path, required=True, help='picture, .jpg or .png')
    parser.add_argument('--num', type=int, default=36, help='how many images')
    parser.add_argument('--step', type=int, default=0, help='of a config: first step drawn')
    parser.add_argument('--seed', type=int, help="of a config; the config's own by default")
    parser.add_argument('--width', type=int, default=1280, help='about how wide, pixels')
    parser.add_argument(
        '--no-attention', action='store_true', help='of a config: leave out where the teacher looks'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, help='change settings: key=value'
    )
    args = parser.parse_args(argv)
    if args.out.suffix not in ('.jpg', '.png'):
        parser.error(f'--out must end in .jpg or .png, not {args.out}')
    if args.num < 1 or args.step < 0:
        parser.error('--num must be at least 1, --step at least 0')
    return args


def draw_config(args: argparse.Namespace):
    """The grid of a config's images."""
    import torch
    from mmengine.registry import DefaultScope

    from mmdfkd.engine.classes import class_names_of
    from mmdfkd.engine.synthesize import Synthesis
    from mmdfkd.visualization import synthetic_grid

    cfg = read_config(str(args.what))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        made = Synthesis.of(cfg, None, args.seed)
        made.start()
        images, step = [], 0
        # All steps from the first: what a source learns in them is in the later images.
        while sum(map(len, images)) < args.num:
            drawn = made.step(step)
            images += [drawn] if step >= args.step else []
            step += 1
        names = class_names_of(cfg, made.distiller.teacher.cfg, made.teacher.num_classes)
        return synthetic_grid(
            made.teacher,
            torch.cat(images)[: args.num],
            names,
            attention=not args.no_attention,
            width=args.width,
        )


def main(argv: list[str] | None = None) -> None:
    """Draw and write the picture."""
    args = parse_args(argv)
    use_all_cores()
    from mmdfkd.visualization import folder_grid, save_image

    if args.what.is_dir():
        grid, shown, there = folder_grid(args.what, args.num, args.width)
        said = f'{shown} of {there} images'
    else:
        grid, said = draw_config(args), f'{args.num} images'
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_image(args.out, grid)
    print(f'{said} in {args.out}')


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
