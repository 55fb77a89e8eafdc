"""Does a COCO student read real COCO images, and report under COCO's own category ids?

    python tools/benchmarks/coco_images.py --data-root <folder with annotations/ and images/>

The student of a COCO run, as the run exports it, is tested by tools/test.py with CocoMetric over
every image of the folder, at a reduced size. Its weights are random unless a checkpoint is given:
this asks whether the images arrive and the results are written as they must be, not how good they
are. One line a check; status 1 if one fails. Boxes only: without the mask branch, a set without
masks will do.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.launch import Options, fail_clearly, read_config

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / 'configs' / 'coco' / 'dfkd_vitdet-b_to_vitdet-s_coco.py'
_MASKS = ('mask_head', 'mask_roi_extractor')


class Check(NamedTuple):
    """One question and its answer."""

    name: str
    passed: bool
    said: str


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', required=True, type=Path)
    parser.add_argument('--ann-file', default='annotations/instances_val.json')
    parser.add_argument('--images', default='images/', help='folder of the images')
    parser.add_argument('--config', default=str(RUN), help='config of the run')
    parser.add_argument('--checkpoint', help="the run's student.pth; random weights without")
    parser.add_argument('--size', type=int, default=256, help='longer side in pixels')
    parser.add_argument('--proposals', type=int, help='regions an image; 1 with random weights')
    parser.add_argument('--cfg-options', nargs='+', action=Options, help="of the run's config")
    return parser.parse_args(argv)


def with_an_empty_image(annotations: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The same annotations with an image without boxes among them: the first one, if none is.

    Returns:
        tuple: The annotations and the image's id.

    Raises:
        ValueError: If there are no images at all.
    """
    if not annotations['images']:
        raise ValueError('The annotations name no image.')
    boxed = {a['image_id'] for a in annotations['annotations']}
    empty = next((i['id'] for i in annotations['images'] if i['id'] not in boxed), None)
    if empty is not None:
        return dict(annotations), empty
    empty = annotations['images'][0]['id']
    kept = [a for a in annotations['annotations'] if a['image_id'] != empty]
    return dict(annotations, annotations=kept), empty


def without_masks(model: Mapping) -> None:
    """Take the mask branch out of a two-stage model's config."""
    for name in _MASKS:
        model['roi_head'].pop(name, None)
    model['test_cfg']['rcnn'].pop('mask_thr_binary', None)


def test_config(args: argparse.Namespace, ann_file: Path, results: Path) -> Config:
    """The student's own config as the run exports it, on the given images.

    With random weights no score says anything: every class of every region is kept.
    """
    from mmdfkd.distillers.student_spec import student_config
    from mmdfkd.engine.hooks.export import ordinary_config

    run = read_config(args.config)
    run.merge_from_dict(args.cfg_options or {})
    spec = {k: v for k, v in run.model.student.items() if k != 'init'}
    cfg = ordinary_config(student_config(spec, Config.fromfile(run.model.teacher.config)), run)
    model = cfg.model
    without_masks(model)
    classes = model.roi_head.bbox_head.num_classes
    proposals = args.proposals or (100 if args.checkpoint else 1)
    model.test_cfg.rpn.update(nms_pre=max(proposals, 50), max_per_img=proposals)
    if not args.checkpoint:
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=proposals * classes)
    dataset = cfg.test_dataloader.dataset
    dataset.update(
        data_root=str(args.data_root.resolve()),
        ann_file=str(ann_file),
        data_prefix=dict(img=args.images),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(args.size, args.size), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
    )
    cfg.test_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.test_evaluator = dict(
        type='CocoMetric', ann_file=str(ann_file), metric='bbox', outfile_prefix=str(results)
    )
    cfg.test_pipeline = dataset.pipeline
    return cfg


def save_weights(cfg: Config, checkpoint: str | None, path: Path) -> None:
    """The checkpoint's weights without the mask branch, or random ones."""
    from mmdfkd.distillers import build_network
    from mmdfkd.evaluation.testing import output_to
    from mmdfkd.utils.checkpoint import read_checkpoint, save_tensors, unwrap_state_dict

    if checkpoint:
        state = unwrap_state_dict(read_checkpoint(checkpoint))
        state = {k: v for k, v in state.items() if not k.startswith('roi_head.mask_')}
    else:
        torch.manual_seed(0)
        # mmengine tells of every parameter how it was initialised.
        with output_to(path.with_suffix('.log')):
            net = build_network(cfg)
            net.init_weights()
        state = net.state_dict()
    save_tensors(state, path)


def run_test(config: Path, weights: Path, folder: Path) -> None:
    """Run tools/test.py.

    Raises:
        RuntimeError: If it fails; shows the end of what it said.
    """
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get('PYTHONPATH')) if p)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / 'tools' / 'test.py'), str(config), str(weights)),
            *('--work-dir', str(folder / 'test'), '--out', str(folder / 'predictions.pkl')),
        ],
        cwd=folder,
        env=os.environ | dict(PYTHONPATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f'tools/test.py failed:\n{done.stdout[-3000:]}')


def checks(
    annotations: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    detections: Sequence[Mapping[str, Any]],
    empty: int,
    every_category: bool,
) -> list[Check]:
    """Compare what was written with what was given.

    Args:
        annotations (Mapping): The COCO file.
        predictions (Sequence[Mapping]): One an image, as ``DumpResults`` writes them.
        detections (Sequence[Mapping]): The results file of ``CocoMetric``.
        empty (int): Id of the image without boxes.
        every_category (bool): Whether each of the categories must be among the detections.
    """
    wanted = {image['id'] for image in annotations['images']}
    seen = [p['img_id'] for p in predictions]
    found = [
        Check(
            'every image read',
            sorted(seen) == sorted(wanted),
            f'{len(set(seen) & wanted)} of {len(wanted)}, {len(seen)} answers',
        )
    ]
    ids = sorted(c['id'] for c in annotations['categories'])
    used = {d['category_id'] for d in detections}
    strange = sorted(used - set(ids))
    complete = used == set(ids) if every_category else bool(used)
    found.append(
        Check(
            'original category ids',
            not strange and complete and len(ids) == 80,
            f'{len(used)} of {len(ids)}, {min(used, default=None)} to {max(used, default=None)}'
            + (f', unknown: {strange}' if strange else ''),
        )
    )
    # Per image the label is the place of the id among the sorted ones.
    by_image: dict[int, list[int]] = {}
    for detection in detections:
        by_image.setdefault(detection['image_id'], []).append(detection['category_id'])
    wrong = [
        p['img_id']
        for p in predictions
        if by_image.get(p['img_id'], [])
        != [ids[int(label)] if int(label) < len(ids) else None for label in _labels(p)]
    ]
    found.append(
        Check(
            'each class under its own id',
            not wrong,
            f'{len(detections)} detections' + (f', wrong in images {wrong[:5]}' if wrong else ''),
        )
    )
    outside = _outside(annotations, detections)
    found.append(
        Check('boxes within their image', not outside, f'{len(outside)} outside {outside[:3]}')
    )
    answered = empty in seen
    found.append(
        Check(
            'an image without boxes',
            answered,
            f'image {empty}: {len(by_image.get(empty, []))} detections'
            if answered
            else f'image {empty} was left out',
        )
    )
    return found


def _labels(prediction: Mapping[str, Any]) -> Sequence[int]:
    instances = prediction['pred_instances']
    return instances['labels'].tolist()


def _outside(annotations: Mapping[str, Any], detections: Sequence[Mapping]) -> list[int]:
    """Images with a box outside the stored pixels: boxes were not scaled back."""
    sizes = {i['id']: (i['width'], i['height']) for i in annotations['images']}
    found = []
    for detection in detections:
        x, y, w, h = detection['bbox']
        width, height = sizes.get(detection['image_id'], (0, 0))
        if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
            found.append(detection['image_id'])
    return sorted(set(found))


def main(argv: list[str] | None = None) -> None:
    """Test, check, and say what was found."""
    args = parse_args(argv)
    original = args.data_root / args.ann_file
    if not original.is_file():
        raise FileNotFoundError(f'There is no {original}: see --data-root and --ann-file.')
    annotations, empty = with_an_empty_image(json.loads(original.read_text(encoding='utf-8')))
    with tempfile.TemporaryDirectory(prefix='coco_images_') as name:
        folder = Path(name)
        ann_file, weights = folder / 'annotations.json', folder / 'student.pth'
        ann_file.write_text(json.dumps(annotations), encoding='utf-8')
        cfg = test_config(args, ann_file, folder / 'results')
        cfg.dump(folder / 'student_config.py')
        save_weights(cfg, args.checkpoint, weights)
        run_test(folder / 'student_config.py', weights, folder)
        predictions = pickle.loads((folder / 'predictions.pkl').read_bytes())
        results = folder / 'results.bbox.json'
        detections = json.loads(results.read_text()) if results.is_file() else []
    found = checks(annotations, predictions, detections, empty, every_category=not args.checkpoint)
    for check in found:
        print(f'{"ok  " if check.passed else "FAIL"} {check.name}: {check.said}')
    failed = [check.name for check in found if not check.passed]
    if failed:
        raise RuntimeError(f'{len(failed)} of {len(found)} checks failed: {", ".join(failed)}.')


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
