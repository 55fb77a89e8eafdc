"""Write a ready data-free run for a teacher: its config and its checkpoint in, one config out."""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template

from mmengine.config import Config

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.launch import fail_clearly
from mmdfkd.utils.set_files import only_formats

BASE = Path(__file__).resolve().parents[1] / 'configs' / '_base_'
RUNTIME = ('runtime.py', 'dfkd_runtime.py')


def head_text(name: str, arguments: str = '') -> str:
    """A head's config."""
    return f"dict(type='mmdfkd.{name}'{', ' * bool(arguments)}{arguments})"


PROPOSALS = head_text('RPNResponseHead')
# What a student follows, by the family of both networks.
HEADS = {
    'classifier': (head_text('LogitHead'), head_text('FeatureHead')),
    'two-stage': (head_text('PyramidHead'), PROPOSALS, head_text('RoIResponseHead')),
    'one-stage': (head_text('PyramidHead'), head_text('DenseResponseHead')),
    # Of a student that is derived from its teacher, whose queries can be asked of both.
    'DETR-like': (
        head_text('EncoderMemoryHead'),
        head_text('QueryAlignedHead', 'fresh=False, floor=1.0'),
        head_text('StudentQueryHead'),
    ),
}
# Of a DETR with a config of its own, and of detectors of two families.
MATCHED = (head_text('EncoderMemoryHead'), head_text('HungarianQueryHead', 'most=300'))
ACROSS = (head_text('BoxResponseHead'), head_text('PseudoLabelHead'))
# A pool is kept in memory as bytes.
POOL_BYTES = 2 << 30

TEMPLATE = Template("""\
# Data-free distillation of $name; written by tools/new_config.py.
#   python tools/train.py $out
#   python tools/test.py $out work_dirs/$stem/student.pth
# The dataset at the end is read in validation and testing only.
default_scope = '$scope'

# Where to begin: more steps, and a larger student, come closer to the teacher.
max_iters = $max_iters
# Height and width in pixels: what the teacher's test pipeline makes.
image_size = $image_size

# Random figures, scored once by the teacher and drawn class-balanced.
pooled = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.ProceduralRenderer'),
    pool_size=$pool_size)

model = dict(
    type='mmdfkd.DataFreeDistiller',
    teacher=dict(
        config=$config,
        checkpoint=$checkpoint),
    student=$student,
$source
    heads=[
$heads
    ]$traced)

train_dataloader = dict(
    batch_size=$batch_size,
    num_workers=0,
    # Said here because mmpretrain's own tool has other defaults.
    persistent_workers=False,
    collate_fn=dict(type='pseudo_collate'),
    sampler=dict(type='mmdfkd.GlobalIndexSampler'),
    dataset=dict(type='mmdfkd.SyntheticDataset', image_size=image_size$metainfo))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.),
    clip_grad=dict(max_norm=5.0))
warmup = min(50, max_iters // 2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=warmup),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warmup,
        end=max_iters,
        T_max=max_iters - warmup,
        eta_min=1e-6),
]

$runtime

# The teacher's own validation and test.
$evaluation""")

SOURCES = {
    'classifier': '    source=pooled,',
    'detector': """\
    # Scenes with objects, which layout inversion of the teacher makes before the first step;
    # `batch` of them at once.
    source=dict(
        type='mmdfkd.LayoutInversionSource',
        source=pooled,
        images=128,
        batch=$batch,
        share=1.0),""",
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'config',
        metavar='TEACHER_CONFIG',
        help="the teacher's config: a path, or mmdet::... or mmpretrain::... of an installed one",
    )
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help="the teacher's weights")
    parser.add_argument('--out', default='dfkd_run.py', help='the config to write')
    parser.add_argument(
        '--width', type=float, default=0.75, help="share of the teacher's channels and heads"
    )
    parser.add_argument('--depth', type=float, default=0.67, help="share of the teacher's blocks")
    parser.add_argument(
        '--student', help='config of the student, instead of a smaller copy of its teacher'
    )
    parser.add_argument(
        '--init',
        help='how the student starts: inherit, random, config (its own init_cfg) or a checkpoint; '
        "by default 'inherit', with --student 'random'",
        default=argparse.SUPPRESS,
    )
    parser.add_argument('--data-root', help="where the teacher's test set lies, if elsewhere")
    parser.add_argument(
        '--image-size', type=positive, nargs='+', metavar='PX', help='side, or height and width'
    )
    parser.add_argument('--max-iters', type=positive, default=2000, help='steps')
    parser.add_argument(
        '--batch-size', type=positive, help='images a step and process; by image size'
    )
    parser.add_argument('--pool-size', type=positive, help='images of the pool; by image size')
    parser.add_argument('--overwrite', action='store_true', help='replace the config at --out')
    args = parser.parse_args()
    if len(args.image_size or ()) > 2:
        parser.error('--image-size is a side, or height and width')
    if args.max_iters < 2:
        parser.error('--max-iters is at least 2: the rate rises, then it falls')
    return args


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, not {text}')
    return value


def short(kind: object) -> str:
    """A class name without its scope."""
    return str(getattr(kind, '__name__', kind)).rsplit('.', 1)[-1]


def pair(size) -> tuple[int, int]:
    """A side, or two of them, as two integers."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


def evaluation_of(cfg: Config) -> dict:
    """The validation and test that a config describes, each by the other where one is missing.

    One that writes files in place of scores (``format_only``) is none.

    Raises:
        KeyError: If it describes none.
    """
    splits = [s for s in ('test', 'val') if not only_formats(cfg.get(f'{s}_evaluator'))]
    found = {}
    for key in ('dataloader', 'evaluator'):
        given = {split: cfg.get(f'{split}_{key}') for split in splits}
        value = given.get('test') or given.get('val')
        if value is None:
            raise KeyError(
                f"The teacher's config has neither test_{key} nor val_{key} that scores: a run "
                'needs them to test teacher and student.'
            )
        for split in ('val', 'test'):
            found[f'{split}_{key}'] = given.get(split) or value
    return Config(found).to_dict()


def test_pipeline(evaluation: Mapping) -> list:
    """The transforms of the test set."""
    dataset = evaluation['test_dataloader']['dataset']
    while 'pipeline' not in dataset and isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    return dataset.get('pipeline') or []


def image_size_of(cfg: Config, evaluation: Mapping) -> tuple[int, int]:
    """Height and width of the images that a teacher's test pipeline makes.

    Images resized within a frame that is no square are taken to be 4:3 lying, as most photographs.

    Raises:
        ValueError: If neither the pipeline nor the backbone says.
    """
    size = None
    divisor = 1
    for step in test_pipeline(evaluation):
        kind = short(step.get('type'))
        if kind in ('Resize', 'FixShapeResize', 'LetterResize') and step.get('scale'):
            wide, high = pair(step['scale'])
            if step.get('keep_ratio') and wide != high:
                high = min(wide, high)
                wide = min(max(pair(step['scale'])), round(high * 4 / 3))
            size = (high, wide)
        elif kind == 'ResizeEdge':
            size = pair(step['scale'])
        elif kind == 'CenterCrop':
            size = pair(step['crop_size'])[::-1]
        elif kind == 'Pad':
            size = pair(step['size'])[::-1] if step.get('size') else size
            divisor = max(divisor, step.get('size_divisor') or 1)
    size = size or (
        pair(cfg.model.backbone.img_size) if cfg.model.backbone.get('img_size') else None
    )
    if size is None:
        raise ValueError(
            "Neither the teacher's test pipeline nor its backbone tells the image size: give "
            '--image-size.'
        )
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    divisor = max(divisor, preprocessor.get('pad_size_divisor') or 1)
    return tuple(-(-side // divisor) * divisor for side in size)


def move_data(value, old: str, new: str):
    """A copy of config values in which paths under ``old`` lie under ``new``."""
    if isinstance(value, Mapping):
        return {k: move_data(v, old, new) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(move_data(v, old, new) for v in value)
    if isinstance(value, str) and (value + '/').startswith(old.rstrip('/') + '/'):
        rest = value[len(old.rstrip('/')) :].lstrip('/')
        return os.path.join(new, rest)
    return value


def with_data_root(evaluation: dict, root: str) -> dict:
    """The validation and test on the same files elsewhere.

    Raises:
        ValueError: If the test set has no ``data_root``.
    """
    dataset = evaluation['test_dataloader']['dataset']
    while not dataset.get('data_root') and isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    if not dataset.get('data_root'):
        raise ValueError(
            f'--data-root: the test set of the teacher, a {short(dataset.get("type"))}, has no '
            'data_root to replace.'
        )
    return move_data(evaluation, dataset['data_root'], root)


def adapter_of(cfg: Config):
    """The adapter of the network that a config describes.

    Raises:
        TypeError: If no family runs it; names those that there are.
    """
    from mmdfkd.adapters import Normalizer, build_adapter
    from mmdfkd.distillers import build_network

    return build_adapter(build_network(cfg), Normalizer.from_config(cfg))


def heads_of(teacher, student) -> tuple[str, ...]:
    """What a student follows.

    Args:
        teacher (Adapter): The teacher's.
        student (Adapter, optional): That of a student with a config of its own.
    """
    if student is not None and student.family != teacher.family:
        return ACROSS
    if teacher.family != 'DETR-like':
        return HEADS[teacher.family]
    heads = HEADS[teacher.family] if student is None else MATCHED
    proposes = all(chooses_queries(adapter) for adapter in (teacher, student or teacher))
    return (heads[0], *[PROPOSALS] * proposes, *heads[1:])


def chooses_queries(adapter) -> bool:
    """Whether a network is a DETR that finds its queries in the image."""
    return adapter.family == 'DETR-like' and not adapter.decoder.steady


def reference(path: str) -> str:
    """A config or checkpoint so that the run finds it from every folder."""
    return path if '::' in path or '://' in path else os.path.abspath(path)


def runtime_text(imports: list[str]) -> str:
    """The shared runtime, in plain values."""
    text = '\n\n'.join((BASE / name).read_text(encoding='utf-8').strip() for name in RUNTIME)
    return re.sub(r"imports=\['mmdfkd'\]", f'imports={imports!r}', text)


def evaluation_text(evaluation: dict) -> str:
    """Validation and test in plain values; validation by reference where it is the test."""
    parts = {k: v for k, v in evaluation.items() if k.startswith('test_')}
    same = []
    for key in ('dataloader', 'evaluator'):
        if evaluation[f'val_{key}'] == evaluation[f'test_{key}']:
            same.append(f'val_{key} = test_{key}\n')
        else:
            parts[f'val_{key}'] = evaluation[f'val_{key}']
    return Config(parts).pretty_text.rstrip() + '\n' + ''.join(same)


def make_text(args: argparse.Namespace) -> str:
    """The text of the run.

    Raises:
        FileNotFoundError: If the teacher's config or checkpoint is missing.
        KeyError, TypeError, ValueError: If it is no teacher that can be distilled; says why.
    """
    from mmdfkd.distillers import load_config, scope_of
    from mmdfkd.engine.classes import declared_metainfo

    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f'There is no checkpoint {args.checkpoint}.')
    cfg = load_config(args.config)
    evaluation = evaluation_of(cfg)
    teacher = adapter_of(cfg)
    classifies = not teacher.detects
    if args.data_root:
        evaluation = with_data_root(evaluation, args.data_root)
    size = pair(args.image_size) if args.image_size else image_size_of(cfg, evaluation)
    area = size[0] * size[1]
    own = None
    if args.student:
        own = adapter_of(load_config(args.student))
        init = getattr(args, 'init', 'random')
        student = f'dict(config={reference(args.student)!r}, init={init!r})'
    else:
        init = getattr(args, 'init', 'inherit')
        student = (
            f"dict(type='mmdfkd.Shrunk', width={args.width:g}, depth={args.depth:g}, init={init!r})"
        )
    if Path(init).is_file():
        # A run may be started from elsewhere.
        student = student.replace(repr(init), repr(str(Path(init).resolve())))
    meta = evaluation['test_dataloader']['dataset'].get('metainfo') or {}
    # As mmengine reads them, from a file where there is one.
    classes = 'classes' in meta and declared_metainfo(Config(evaluation), 'test').get('classes')
    batch = max(2, min(16, 16 * 256**2 // area))
    traced = ''
    if any(chooses_queries(adapter) for adapter in (teacher, own) if adapter is not None):
        # As many tokens as queries are needed where widths are traced.
        traced = f',\n    image_size={tuple(min(side, 256) for side in size)}'
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    return TEMPLATE.substitute(
        name=args.config,
        out=args.out,
        stem=Path(args.out).stem,
        scope=scope_of(cfg),
        max_iters=args.max_iters,
        image_size=size,
        config=repr(reference(args.config)),
        checkpoint=repr(reference(args.checkpoint)),
        student=student,
        pool_size=args.pool_size or min(4096, max(1, POOL_BYTES // (3 * area))),
        heads='\n'.join(f'        {head},' for head in heads_of(teacher, own)),
        traced=traced,
        source=Template(SOURCES['classifier' if classifies else 'detector']).substitute(
            batch=batch
        ),
        batch_size=args.batch_size or (64 if classifies else batch),
        metainfo=f',\n        metainfo=dict(classes={tuple(classes)!r})' if classes else '',
        runtime=runtime_text(imports + ['mmdfkd'] * ('mmdfkd' not in imports)),
        evaluation=evaluation_text(evaluation),
    )


def check(text: str) -> None:
    """Build what a run would train and load its teacher, so that no broken config is written.

    Raises:
        CheckpointMismatchError: If the checkpoint holds other weights than the teacher's.
        TypeError, ValueError: If the student cannot be derived or does not suit the teacher.
    """
    from mmdfkd.registry import MODELS

    cfg = Config.fromstring(text, '.py')
    distiller = MODELS.build(cfg.model)
    if '://' not in cfg.model.teacher.checkpoint:
        distiller.teacher.load()


def main() -> None:
    """Write the config."""
    args = parse_args()
    out = Path(args.out)
    if out.suffix != '.py':
        raise ValueError(f'--out must end in .py, not {args.out}.')
    if out.exists() and not args.overwrite:
        raise ValueError(f'{args.out} exists; give --overwrite to replace it.')
    text = make_text(args)
    check(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding='utf-8')
    print(f'{args.out} is ready:\n  python tools/train.py {args.out}')


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
