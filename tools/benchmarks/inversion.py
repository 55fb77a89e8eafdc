"""Do scenes of layout inversion show their objects to others than the teacher?

    python tools/benchmarks/inversion.py --set digits
    python tools/benchmarks/inversion.py --set bccd --other STUDENT_CONFIG STUDENT.pth

A set's scenes are made by several variants of the shared setting, from the same start scenes; no
layout is revised meanwhile, so what counts is the layout asked for at the start. Of its boxes are
counted those detected with their class (IoU of at least 0.5, score of at least 0.3):

- ``teacher_finds``: by the teacher that the scenes were made through;
- ``other_finds``: by another detector, a student that saw procedural images only (``student`` is
  its share of the teacher's parameters; 1 without one);
- ``classifier_right``: for the digits, by a network of another task, trained apart: the
  classifier of configs/digits on the boxes' crops, without any say of a detector.

The row of the set's real test images says what each of them can do at all. Seconds are CPU seconds
of making the scenes, without the start images. A row whose line is there is not repeated.
"""

import argparse
import functools
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.adapters import Adapter
from mmdfkd.evaluation import Annotation, find_objects
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import SyntheticSource
from mmdfkd.utils.launch import fail_clearly, use_all_cores

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'inversion.jsonl'
# As tools/benchmarks/detectors.py leaves it.
OTHER = 'work_dirs/benchmark_detectors/{set}_40_procedural_inherit_300_s0/student'

FULL, START, REAL = 'full', '0 steps', 'real images'
ANY_PIECES = 'random pieces'
# What a variant changes in the shared setting.
VARIANTS: dict[str, dict] = {
    START: dict(steps=1, lr=0.0),
    FULL: {},
    'long': dict(steps=60),
    'no views': dict(
        jitter=dict(zoom=(1.0, 1.0), shift=0.0, contrast=0.0, brightness=0.0, noise=0.0)
    ),
    'no blur': dict(scales=(0.0,)),
    # Every start image in which the class is seen at all, not only those where it is most.
    ANY_PIECES: dict(scene=dict(choice=1 << 30)),
}
CLASSIFIER = {'digits': 'configs/digits/deit_digits'}
SETS = ('digits', 'bccd')
# Around the longer side of a box, on each side; the classifier's digits fill their image.
MARGIN = 0.05
MOST_BYTES = 250_000


@dataclass
class Scenes:
    """Images and the objects that are asked for in them.

    Attributes:
        images: ``[N, 3, H, W]`` RGB uint8.
        layouts: One an image, without scores.
        steps: Gradient steps.
        seconds: CPU seconds of their making.
    """

    images: torch.Tensor
    layouts: list[Annotation]
    steps: int = 0
    seconds: float = 0.0


# Measures ----------------------------------------------------------------------------------------


def found_share(layouts: Sequence[Annotation], seen: Sequence[Annotation]) -> float:
    """Share of the objects that are detected with their class.

    Raises:
        ValueError: If there is no object.
    """
    objects = sum(len(layout.labels) for layout in layouts)
    if not objects:
        raise ValueError(f'There is no object in {len(layouts)} images.')
    found = (find_objects(*pair) >= 0 for pair in zip(layouts, seen, strict=True))
    return float(sum(hits.sum() for hits in found)) / objects


def square_crops(
    image: np.ndarray, boxes: np.ndarray, side: int = 32, margin: float = MARGIN
) -> np.ndarray:
    """Grey squares around boxes, ``[N, side, side]`` in [0, 1]; edges are repeated.

    Args:
        image (np.ndarray): RGB uint8 ``[H, W, 3]``.
        boxes (np.ndarray): ``[N, 4]`` xyxy pixels.
        side (int): Of the crops in pixels.
        margin (float): Room on each side, as a share of a box's longer side.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    crops = np.zeros((len(boxes), side, side), np.float32)
    for crop, box in zip(crops, np.asarray(boxes, np.float64).reshape(-1, 4), strict=True):
        scale = (1 + 2 * margin) * (box[2:] - box[:2]).max() / side
        # From the middles of the crop's pixels to those of the image's.
        corner = (box[:2] + box[2:]) / 2 - scale * side / 2 + scale / 2 - 0.5
        crop[:] = cv2.warpAffine(
            grey,
            np.array([[scale, 0, corner[0]], [0, scale, corner[1]]]),
            (side, side),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return crops


def both_polarities(crops: np.ndarray) -> np.ndarray:
    """What is brighter and what is darker than the ground, each as bright on black.

    The ground is the median of a crop's edge; the hundredth that stands out from it most becomes 1.

    Args:
        crops (np.ndarray): ``[N, S, S]`` grey.

    Returns:
        np.ndarray: ``[N, 2, S, S]`` in [0, 1].
    """
    edges = np.concatenate([crops[:, 0], crops[:, -1], crops[:, :, 0], crops[:, :, -1]], axis=1)
    ground = np.median(edges, axis=1)[:, None, None]
    both = np.stack([crops - ground, ground - crops], axis=1).clip(min=0)
    # One for both: texture of the ground stays fainter than what lies on it.
    top = np.quantile(both.max(1), 0.99, axis=(1, 2))[:, None, None, None]
    return (both / np.maximum(top, 1e-3)).clip(max=1).astype(np.float32)


@torch.no_grad()
def classes_of(classifier: Adapter, crops: np.ndarray, batch: int = 64) -> np.ndarray:
    """The class of each crop ``[N, S, S]``, ``[N]``: by the polarity it is surer of."""
    if not len(crops):
        return np.zeros(0, int)
    grey = torch.from_numpy(both_polarities(crops)).flatten(0, 1)[:, None]
    votes = [
        classifier.class_votes(classifier.encode(part.expand(-1, 3, -1, -1)))
        for part in grey.split(batch)
    ]
    sure, label = torch.cat(votes).view(len(crops), 2, -1).max(2)
    return label.gather(1, sure.argmax(1, keepdim=True))[:, 0].cpu().numpy()


def classified_share(classifier: Adapter, scenes: Scenes) -> float:
    """Share of the objects whose crop the classifier gives their class."""
    pixels = scenes.images.permute(0, 2, 3, 1).numpy()
    crops = [
        square_crops(image, layout.boxes)
        for image, layout in zip(pixels, scenes.layouts, strict=True)
    ]
    labels = np.concatenate([layout.labels for layout in scenes.layouts])
    return float((classes_of(classifier, np.concatenate(crops)) == labels).mean())


def measure(
    scenes: Scenes, teacher: Adapter, other: Adapter | None, classifier: Adapter | None
) -> dict[str, float]:
    """All measures of a set of scenes; those of networks that are not there are left out."""
    from mmdfkd.evaluation import seen_in

    found = {}
    for name, network in (('teacher_finds', teacher), ('other_finds', other)):
        if network is not None:
            found[name] = found_share(scenes.layouts, seen_in(network, scenes.images))
    if classifier is not None:
        found['classifier_right'] = classified_share(classifier, scenes)
    return {name: round(value, 4) for name, value in found.items()}


# Scenes ------------------------------------------------------------------------------------------


class Ready(SyntheticSource):
    """A source that is prepared already, under several others."""

    def __init__(self, source: SyntheticSource) -> None:
        super().__init__()
        self.source = source

    def prepare(self, *_, **__) -> None:
        """Nothing: it is."""

    def draw(self, items: list[dict]):
        """As the source."""
        return self.source.draw(items)


class SceneMaker:
    """Makes scenes by variants of a setting, from one pool of start images.

    Args:
        setting (dict): Config of a :class:`mmdfkd.synthesis.LayoutInversionSource`.
        teacher (Adapter): The teacher.
        size (tuple[int, int]): Height and width.
        count (int): Scenes of each variant.
        seed (int): Seed of everything random.
    """

    def __init__(
        self, setting: dict, teacher: Adapter, size: tuple[int, int], count: int, seed: int
    ) -> None:
        self.setting = {**setting, 'images': count, 'every': 0, 'grow': ()}
        self.teacher = teacher
        self.where = dict(seed=seed, image_size=size, device=next(teacher.net.parameters()).device)
        first = MODELS.build(self.setting)
        with torch.no_grad():
            first.prepare(teacher, **self.where)
        # The dearest part, and the same for every variant.
        self.start = Ready(first.source)
        self.pieces = functools.cache(first.pieces)

    def __call__(self, options: dict) -> Scenes:
        """The scenes of the setting with other ``options``, one of :data:`VARIANTS`."""
        source = MODELS.build({**self.setting, **options})
        source.source = self.start
        source.prepare(self.teacher, **self.where)
        source.pieces = self.pieces
        self.pieces(self.teacher)
        begin = time.process_time()
        # Not refresh(): a set without one object found is a result here.
        for first in range(0, source.images, source.batch):
            count = min(source.batch, source.images - first)
            source.make(count, self.teacher, self.teacher, 0)
        seconds = time.process_time() - begin
        images, targets, _ = source.bank.take(source.bank.ids)
        layouts = [
            Annotation(labels.numpy(), boxes=boxes.numpy())
            for boxes, labels in zip(targets.boxes, targets.box_labels, strict=True)
        ]
        steps = source.steps if source.lr else 0
        return Scenes((images * 255).round().to(torch.uint8), layouts, steps, seconds)


def real_scenes(dataset, count: int, size: tuple[int, int]) -> Scenes:
    """Images of a detection dataset at ``size``, height and width, with their own objects."""
    import mmcv

    from mmdfkd.evaluation import spread

    images, layouts = [], []
    for index in spread(len(dataset), count):
        info = dataset.get_data_info(index)
        image = mmcv.imread(info['img_path'], channel_order='rgb')
        height, width = image.shape[:2]
        factor = np.tile([size[1] / width, size[0] / height], 2)
        if (height, width) != size:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        objects = [i for i in info['instances'] if not i.get('ignore_flag')]
        boxes = np.array([i['bbox'] for i in objects], np.float32).reshape(-1, 4) * factor
        images.append(torch.from_numpy(image.transpose(2, 0, 1).copy()))
        layouts.append(Annotation(np.array([i['bbox_label'] for i in objects], int), boxes=boxes))
    return Scenes(torch.stack(images), layouts)


# Pictures ----------------------------------------------------------------------------------------


def before_and_after(
    start: Scenes, finished: Scenes, names: Sequence[str], count: int = 12, columns: int = 6
) -> np.ndarray:
    """Rows of start scenes, each above the row of the same scenes finished, with their layouts."""
    from mmdfkd.visualization import panel, tile

    rows = []
    for first in range(0, min(count, len(start.images)), columns):
        for scenes in (start, finished):
            for i in range(first, min(first + columns, count, len(scenes.images))):
                image = scenes.images[i].permute(1, 2, 0).contiguous().numpy()
                rows.append(panel(image, scenes.layouts[i], names, 256))
    return tile(rows, min(columns, len(start.images)))


def save_small(path: Path, image: np.ndarray, most: int = MOST_BYTES) -> None:
    """Write an RGB image as a JPEG of at most ``most`` bytes.

    Raises:
        ValueError: If no quality will do.
    """
    for quality in range(90, 20, -5):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        data = cv2.imencode('.jpg', np.ascontiguousarray(image[..., ::-1]), options)[1].tobytes()
        if len(data) <= most:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            return
    raise ValueError(f'{path} cannot be written in {most} bytes: draw fewer scenes.')


# The tool ----------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--set', choices=SETS, default='digits')
    parser.add_argument('--scenes', type=int, default=48, help='of each variant')
    parser.add_argument('--rows', nargs='+', choices=(*VARIANTS, REAL), help='all by default')
    parser.add_argument(
        '--other',
        nargs='+',
        metavar='FILE',
        help="another detector's config and checkpoint, or none; the set's student of 300 steps on "
        'procedural images by default',
    )
    parser.add_argument('--seed', type=int, default=2001, help='not that of a training run')
    parser.add_argument('--pictures', type=Path, help='.jpg of start and finished scenes')
    args = parser.parse_args(argv)
    if args.other is None:
        student = OTHER.format(set=args.set)
        args.other = [f'{student}_config.py', f'{student}.pth']
    if args.other == ['none']:
        args.other = None
    elif len(args.other) != 2:
        parser.error('--other is a config and a checkpoint, or none')
    if args.scenes < 1:
        parser.error('--scenes must be at least 1')
    return args


def load_adapter(config: str | Path, checkpoint: str | Path) -> Adapter:
    """A finished network.

    Raises:
        FileNotFoundError: If one of the files is not there.
    """
    from mmdfkd.distillers.teacher import Teacher

    for path in (config, checkpoint):
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'There is no {path}. Another detector is a student of '
                'tools/benchmarks/detectors.py, say; --other none does without.'
            )
    network = Teacher(str(config), str(checkpoint))
    network.load()
    return network.adapter


def done_rows(args: argparse.Namespace) -> set[str]:
    """Rows of this set and seed that have a line."""
    from mmdfkd.evaluation import read_results

    if not RESULTS.is_file() or not RESULTS.read_text().strip():
        return set()
    lines = read_results(RESULTS)
    return {li['row'] for li in lines if (li['set'], li['seed']) == (args.set, args.seed)}


def command_of(args: argparse.Namespace) -> str:
    """The command that a line is made with; of the other detector the last parts of its path."""
    other = ' '.join('/'.join(Path(name).parts[-4:]) for name in args.other or ['none'])
    return (
        f'python tools/benchmarks/inversion.py --set {args.set} --scenes {args.scenes} '
        f'--seed {args.seed} --other {other}'
    )


def lines_of(
    args: argparse.Namespace,
    rows: Iterable[tuple[str, Scenes]],
    teacher: Adapter,
    other: Adapter | None,
) -> Iterable[dict]:
    """The result line of each row."""
    from mmdfkd.evaluation import count_parameters
    from mmdfkd.utils.run_files import project_commit

    name = CLASSIFIER.get(args.set)
    classifier = load_adapter(ROOT / f'{name}.py', ROOT / f'{name}.pth') if name else None
    share = 1.0
    if other is not None:
        share = count_parameters(other.net)[0] / count_parameters(teacher.net)[0]
    starts = {REAL: 'none', ANY_PIECES: 'any pieces'}
    for row, scenes in rows:
        yield dict(
            benchmark=RESULTS.stem,
            set=args.set,
            student=round(share, 4),
            row=row,
            init=starts.get(row, 'surest pieces'),
            seed=args.seed,
            metrics=measure(scenes, teacher, other, classifier),
            teacher=None,
            ceiling=None,
            steps=scenes.steps,
            seconds=round(scenes.seconds, 1),
            threads=torch.get_num_threads(),
            commit=project_commit(),
            command=command_of(args),
        )


def main(argv: list[str] | None = None) -> None:
    """Make the scenes, measure them, append the lines, draw."""
    args = parse_args(argv)
    use_all_cores()
    from mmengine.registry import DATASETS, init_default_scope

    from mmdfkd.evaluation import append_result

    cfg = Config.fromfile(ROOT / 'configs' / args.set / 'dfkd_inverted.py')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    size = cfg.train_dataloader.dataset.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    done = done_rows(args)
    wanted = [row for row in (args.rows or (REAL, *VARIANTS)) if row not in done]
    if done:
        print(
            f'{RESULTS.name} has lines of set {args.set} and seed {args.seed}, which are not made '
            f'again, whatever --scenes and --other: {", ".join(sorted(done))}. Delete them, or '
            'take another --seed.',
            flush=True,
        )
    drawn = {START, FULL} if args.pictures else set()
    teacher = load_adapter(cfg.model.teacher.config, cfg.model.teacher.checkpoint)
    other = load_adapter(*args.other) if args.other and wanted else None
    made: dict[str, Scenes] = {}
    maker = None

    def scenes_of(row: str) -> Scenes:
        nonlocal maker
        if row == REAL:
            with_objects = DATASETS.build(cfg.test_dataloader.dataset)
            return real_scenes(with_objects, args.scenes, size)
        if maker is None:
            maker = SceneMaker(cfg.model.source.to_dict(), teacher, size, args.scenes, args.seed)
        scenes = maker(VARIANTS[row])
        if row in drawn:
            made[row] = scenes
        return scenes

    for line in lines_of(args, ((row, scenes_of(row)) for row in wanted), teacher, other):
        append_result(RESULTS, **line)
        print(f'{line["row"]}: {line["metrics"]}, {line["seconds"]} CPU seconds', flush=True)
    for row in drawn - made.keys():
        scenes_of(row)
    if args.pictures:
        classes = cfg.train_dataloader.dataset.metainfo.classes
        save_small(args.pictures, before_and_after(made[START], made[FULL], classes))
        print(f'Start and finished scenes in {args.pictures}')


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
