"""Draw and count what a student misses that its teacher finds.

    python tools/analysis_tools/failures.py configs/dfkd_vitdet.py work_dirs/dfkd_vitdet/student.pth

On the test set of the run: an object counts as found by a detection of its class with an IoU of at
least 0.5 and a score of at least 0.3. The table gives the objects, those that each network finds,
those that only the teacher finds (missed) and only the student (gained); the picture shows the
images with most missed ones.
"""

import argparse
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path

from mmengine.config import Config

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.launch import Options, fail_clearly, read_config, use_all_cores


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="the run's config, or the student's own")
    parser.add_argument('student', type=Path, help="the student's weights, in its run's folder")
    parser.add_argument('--teacher-config', help="the run folder's teacher_config.py by default")
    parser.add_argument('--teacher-checkpoint', help="that of the run folder's run.json by default")
    parser.add_argument(
        '--out',
        type=Path,
        help="picture, .jpg or .png; failures.jpg in the run's folder by default",
    )
    parser.add_argument('--images', type=int, default=8, help='how many are drawn')
    parser.add_argument('--min-iou', type=float, default=0.5)
    parser.add_argument('--min-score', type=float, default=0.3)
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, help='change the test set: key=value'
    )
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix not in ('.jpg', '.png'):
        parser.error(f'--out must end in .jpg or .png, not {args.out}')
    if args.images < 1:
        parser.error('--images must be at least 1')
    for option, value in (('--min-iou', args.min_iou), ('--min-score', args.min_score)):
        if not 0 <= value <= 1:
            parser.error(f'{option} is from 0 to 1, not {value:g}')
    return args


def student_config_of(path: str, folder: Path) -> Config:
    """The student's ordinary config: the given one, or for a run's that of its folder.

    Raises:
        FileNotFoundError: If the folder has none.
    """
    from mmdfkd.utils.run_files import STUDENT_CONFIG

    cfg = read_config(path)
    if not cfg.model.type.endswith('DataFreeDistiller'):
        return cfg
    own = folder / STUDENT_CONFIG
    if not own.is_file():
        raise FileNotFoundError(
            f"{path} is a run's config, and {folder} has no {STUDENT_CONFIG}: give the student's "
            'own config.'
        )
    return Config.fromfile(own)


def image_names(*infos: dict) -> list[str | None]:
    """What test sets call an image: its file, else its id; None each where they share neither."""
    for key in ('img_path', 'img_id'):
        found = [info.get(key) for info in infos]
        if None not in found:
            # The same files may lie in another folder.
            return [Path(name).name for name in found] if key == 'img_path' else found
    return [None for _ in infos]


def check_same_set(teacher, student) -> None:
    """Both networks have to be tested on the same images, with the same classes in one order.

    Args:
        teacher (Tested): The teacher and its test set.
        student (Tested): The student and its own.

    Raises:
        ValueError: If their test sets differ; names the first difference.
    """
    sets = (teacher.dataset, student.dataset)
    if len(sets[0]) != len(sets[1]):
        raise ValueError(
            f'The teacher is tested on {len(sets[0])} images, the student on '
            f'{len(sets[1])}: their configs name different test sets.'
        )
    names = (teacher.class_names, student.class_names)
    pairs = [(f'Class {i}', *pair) for i, pair in enumerate(zip_longest(*names)) if all(names)]
    for i in range(len(sets[0])):
        pairs.append((f'Image {i}', *image_names(*(one.get_data_info(i) for one in sets))))
    for what, one, other in pairs:
        if one != other:
            raise ValueError(
                f"{what} of the teacher's test set is {one}, of the student's {other}: their "
                'configs name different test sets.'
            )


def main(argv: list[str] | None = None) -> None:
    """Print the table and draw the gallery."""
    args = parse_args(argv)
    use_all_cores()
    from mmdfkd.evaluation import (
        FinishedRun,
        count_failures,
        failures_of,
        failures_table,
        ground_truth,
        image_of,
        load_network,
        prediction,
    )
    from mmdfkd.visualization import failure_gallery, save_image

    if not args.student.is_file():
        raise FileNotFoundError(f'There is no {args.student}.')
    folder = args.student.parent
    run = FinishedRun(folder, args.config)
    student_cfg = student_config_of(args.config, folder)
    teacher_cfg = args.teacher_config or run.teacher_config
    checkpoint = args.teacher_checkpoint or run.teacher_checkpoint(run.read())
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / 'load.log'
        student = load_network(student_cfg, args.student, log, args.cfg_options)
        teacher = load_network(teacher_cfg, checkpoint, log, args.cfg_options)
    check_same_set(teacher, student)
    images = range(len(student.dataset))
    print(f'Both networks on {len(images)} images ...', flush=True)
    truth = [ground_truth(student, i) for i in images]
    seen = [[prediction(net, i) for i in images] for net in (teacher, student)]
    found = failures_of(truth, *seen, args.min_iou, args.min_score)
    print(failures_table(count_failures(found, student.class_names)))
    shown = [image for image in found[: args.images] if len(image.missed)]
    if not shown:
        print('The student misses nothing that the teacher finds: no picture.')
        return
    out = args.out or folder / 'failures.jpg'
    out.parent.mkdir(parents=True, exist_ok=True)
    gallery = failure_gallery(
        [image_of(student, image.index) for image in shown],
        shown,
        *([answers[image.index] for image in shown] for answers in seen),
        student.class_names,
    )
    save_image(out, gallery)
    print(f'{len(shown)} images in {out}')


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
