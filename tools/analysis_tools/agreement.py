"""Test a student without a test set: how well it follows its teacher on synthetic images.

    python tools/analysis_tools/agreement.py configs/dfkd_vitdet.py

They are made by inversion of the teacher, with a seed of their own: a detector's are scenes with
objects, a classifier's show every class alike often. What the teacher sees in them is taken as the
truth. The images are kept beside the run; to measure the students of other runs on the same ones,
name the file with --scenes.

Students of different sources of images are compared on images that are nobody's kind: inverted ones
favour those that learned from inverted ones. --textures takes a pool of dead leaves, fractals,
sinusoids and shaders, drawn by the teacher's votes, which no default source draws (classifiers).
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from mmengine.config import Config

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.launch import Options, fail_clearly, read_config, use_all_cores

# Sources of images that an inversion may start from; where a run has others, a pool of its own.
_STARTS = ('mmdfkd.PooledSource', 'mmdfkd.MixtureSource')
# What no default source draws.
_TEXTURES = ('DeadLeaves', 'Fractal', 'Sinusoid', 'Shader')
# Images in their pool for each that is taken.
_POOLED = 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="path of the run's config")
    parser.add_argument('--work-dir', help="the run's; ./work_dirs/<config> by default")
    parser.add_argument('--students', nargs='+', help='weights; student.pth of the run by default')
    parser.add_argument('--images', type=int, default=96, help='number of images')
    parser.add_argument('--steps', type=int, default=30, help='gradient steps of each')
    parser.add_argument('--seed', type=int, default=1001, help='not that of a training run')
    parser.add_argument(
        '--textures', action='store_true', help='textures in place of inverted images (classifiers)'
    )
    parser.add_argument(
        '--scenes', help='file of the images; <work-dir>/scenes.pth or textures.pth by default'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, help='as the run was trained with: key=value'
    )
    return parser.parse_args(argv)


def make_scenes(teacher, source: dict, args: argparse.Namespace, size: tuple[int, int]):
    """Images ``[N, 3, H, W]`` uint8 by inversion, from the run's own start images."""
    from mmdfkd.registry import MODELS

    while 'source' in source:
        source = source['source']
    if source['type'] not in _STARTS:
        source = dict(
            type='mmdfkd.PooledSource',
            renderer=dict(type='mmdfkd.ProceduralRenderer'),
            pool_size=2048,
        )
    kind = 'LayoutInversionSource' if teacher.detects else 'PixelInversionSource'
    built = MODELS.build(
        dict(type=f'mmdfkd.{kind}', source=source, images=args.images, steps=args.steps)
    )
    device = next(teacher.net.parameters()).device
    with torch.no_grad():
        built.prepare(teacher, seed=args.seed, image_size=size, device=device)
    built.refresh(teacher, teacher, 0)
    return (built.bank.take(built.bank.ids)[0] * 255).round().to(torch.uint8)


def read_scenes(path: Path, wanted: dict, size: tuple[int, int] | None):
    """Images ``[N, 3, H, W]`` uint8 that an earlier call made.

    Raises:
        ValueError: If they were made with other settings than are wanted, or are of another size.
    """
    from mmdfkd.utils.checkpoint import read_checkpoint

    content = read_checkpoint(str(path))
    # A file of images alone is taken as it is.
    other = {k: v for k, v in content.get('meta', {}).items() if k in wanted and wanted[k] != v}
    if other:
        asked = {k: wanted[k] for k in other}
        raise ValueError(
            f'{path} was made with {other}, and {asked} are asked for: delete it, name another one '
            'with --scenes, or ask for the same.'
        )
    images = content.get('state_dict', content)['images']
    if size and tuple(images.shape[-2:]) != size:
        raise ValueError(
            f'The images of {path} are of {tuple(images.shape[-2:])} px (height, width), those of '
            f'the run of {size}: delete the file, or name another one with --scenes.'
        )
    return images


def draw_textures(teacher, args: argparse.Namespace, size: tuple[int, int]):
    """Images ``[N, 3, H, W]`` uint8 of textures, drawn by the teacher's votes."""
    from mmdfkd.registry import MODELS

    source = MODELS.build(
        dict(
            type='mmdfkd.PooledSource',
            renderer=dict(
                type='mmdfkd.CombinedRenderer',
                renderers=[dict(type=f'mmdfkd.{name}Renderer') for name in _TEXTURES],
                joined=0.0,
            ),
            pool_size=_POOLED * args.images,
        )
    )
    device = next(teacher.net.parameters()).device
    with torch.no_grad():
        source.prepare(teacher, seed=args.seed, image_size=size, device=device)
        images, _ = source.draw([dict(g=g) for g in range(args.images)])
    return (images * 255).round().to(torch.uint8).cpu()


def main(argv: list[str] | None = None) -> None:
    """Print a line of JSON for each student."""
    args = parse_args(argv)
    use_all_cores()
    from mmengine.registry import init_default_scope

    from mmdfkd.adapters import Normalizer, build_adapter
    from mmdfkd.distillers.networks import build_network
    from mmdfkd.distillers.teacher import Teacher
    from mmdfkd.evaluation import (
        FinishedRun,
        class_probabilities,
        classification_agreement,
        detection_agreement,
        detections,
    )
    from mmdfkd.utils.checkpoint import read_checkpoint, save_tensors, sha256, unwrap_state_dict
    from mmdfkd.utils.key_report import load_strict

    cfg = read_config(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    work_dir = Path(
        args.work_dir or cfg.get('work_dir') or Path('work_dirs') / Path(args.config).stem
    )
    run = FinishedRun(work_dir, args.config)
    facts = run.read()
    order = facts.get('input_order', 'auto')
    teacher = Teacher(str(run.teacher_config), run.teacher_checkpoint(facts), order)
    teacher.load()
    if args.textures and teacher.adapter.detects:
        raise ValueError(
            '--textures: a detector finds no objects in textures; leave the option out for scenes.'
        )
    scenes = Path(args.scenes or work_dir / ('textures.pth' if args.textures else 'scenes.pth'))
    made = dict(images=args.images, seed=args.seed, textures=args.textures)
    if not args.textures:
        made['steps'] = args.steps
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    size = dataset.get('image_size') or (cfg.get('model') or {}).get('image_size')
    size = (size, size) if isinstance(size, int) else size and tuple(size)
    # Images are a teacher's. Students of other runs may be measured on them: --scenes names them.
    checkpoint = str(teacher.checkpoint)
    digest = checkpoint if '://' in checkpoint else sha256(checkpoint)[:16]
    if scenes.is_file():
        images = read_scenes(scenes, made if args.scenes else dict(made, teacher=digest), size)
    elif not size:
        raise ValueError(f'{args.config} says no image_size; name a file of images with --scenes.')
    else:
        images = (
            draw_textures(teacher.adapter, args, size)
            if args.textures
            else make_scenes(teacher.adapter, cfg.model.source, args, size)
        )
        save_tensors(dict(images=images), scenes, dict(made, teacher=digest))
    detects = teacher.adapter.detects
    answers = detections if detects else class_probabilities
    truth = answers(teacher.adapter, images)
    own = Config.fromfile(run.student_config)
    for path in args.students or [str(run.student)]:
        net = build_network(own, keep_init=False)
        load_strict(net, unwrap_state_dict(read_checkpoint(path)), what=path)
        order = facts.get('student_input_order', 'auto')
        student = build_adapter(net.eval(), Normalizer.from_config(own, order))
        found = answers(student, images)
        found = (
            detection_agreement(found, truth, student.num_classes)
            if detects
            else classification_agreement(found, truth)
        )
        rounded = {name: round(value, 4) for name, value in found.items()}
        print(json.dumps(dict(student=path, images=len(images), **rounded)))


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
