"""What distilling a detector costs: a step with each head, in the student's ordinary steps.

    python tools/benchmarks/detector_cost.py
    python tools/benchmarks/detector_cost.py --set two-stage --rows masks FGD

Of each family one pair of networks, on 128 px images that are there already. An ordinary step is
mmdet's own, with labels: forward, losses, backward, optimiser. A step of a row is a whole one of
the distiller with that head: teacher, student, losses, backward, optimiser. In each round both
follow each other in one process; the median of the ratios is taken, so a machine that others use
at the same time meets both. Seconds are those that the process computed on a CPU, of the clock on
a GPU.

``time``: seconds of a step, in ordinary ones. ``memory``: what a step keeps for its backward, of
the teacher's weights and of the heads' own parameters (with gradients and both averages of Adam),
in what an ordinary step keeps for its backward; ``mib`` is the same in MiB. It is counted tensor by
tensor, each storage once, so it is the same on every machine.

Images are noise, and weights those committed for the digits, or random as mmdet draws them: what a
teacher detects there says nothing. So every teacher is sure of the boxes that the ordinary step is
trained with, three an image, and of nothing else (:func:`sees_the_objects`): a row that reads
detections (pseudo labels, FGD, query prior) has as many objects as the step it is divided by. How
many proposals an RPN leaves is the networks' own affair, in the ordinary step too.

One line a row in docs/results/detector_cost.jsonl, written at once; a row whose line is there is
not repeated.
"""

import argparse
import copy
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from head_cost import kept_bytes, step_of  # the benchmark beside this file
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from source_cost import clock
from torch import Tensor, nn

import mmdfkd  # noqa: F401  (first of the stack: it makes torchvision importable)
from mmdfkd.distillers import DataFreeDistiller, build_network, load_config
from mmdfkd.registry import MODELS
from mmdfkd.utils.launch import fail_clearly

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'results' / 'detector_cost.jsonl'
SIZE = 128
# Images of a step unless told otherwise.
BATCH = 2
OPTIMISER = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-5))
# A logit that leaves no doubt.
_CERTAIN = 6.0
# The objects of an ordinary step, of classes 0, 1 and 2: xyxy pixels.
OBJECTS = (8, 8, 40, 40), (60, 20, 110, 70), (30, 70, 60, 120)
SHRUNK = dict(type='mmdfkd.Shrunk', width=0.75, depth=0.67, init='random')
DETR_SHRUNK = dict(SHRUNK, head=0.5, decoder=0.5)
# Teachers committed for the digits, and their students.
COMMITTED = {
    'two-stage': ('vitdet_digits', SHRUNK),
    'DETR-like': ('deformable_detr_digits', DETR_SHRUNK),
}


def head(kind: str, **settings: Any) -> dict[str, Any]:
    """A head's config."""
    return dict(type=f'mmdfkd.{kind}', **settings)


#: Of any detectors; those of features cost alike in all families.
COMMON = {
    'pseudo labels': [head('PseudoLabelHead', threshold=0.3)],
    'boxes': [head('BoxResponseHead')],
    'pyramid': [head('PyramidHead', floor=1.0)],
    'pyramid, PKD': [head('PyramidHead', mode='pkd')],
    'CWD': [head('ChannelWiseHead', levels=[-1])],
    'MGD': [head('GenerationHead', target='all', levels=[-1])],
    'FGD': [head('FGDHead')],
    'manifold, pyramid': [head('ManifoldHead', levels=[-1], random_weight=0.0)],
}
BLOCKS = {
    'manifold, blocks': [
        head(
            'ManifoldHead',
            taps_student=['backbone.blocks.1', 'backbone.blocks.3'],
            taps_teacher=['backbone.blocks.2', 'backbone.blocks.5'],
            random_weight=0.0,
        )
    ]
}
#: Heads by the name of their row, of each family; the last row is a usual run's.
ROWS: dict[str, dict[str, list[dict]]] = {
    'two-stage': {
        **COMMON,
        **BLOCKS,
        'RPN': [head('RPNResponseHead')],
        'RoI': [head('RoIResponseHead')],
        'pyramid, RPN, RoI': [
            head('PyramidHead'),
            head('RPNResponseHead'),
            head('RoIResponseHead'),
        ],
    },
    'cascade with masks': {
        'pseudo labels': COMMON['pseudo labels'],
        'RoI, 3 stages': [head('RoIResponseHead')],
        'masks': [head('MaskResponseHead')],
        'pyramid, RPN, RoI, masks': [
            head('PyramidHead'),
            head('RPNResponseHead'),
            head('RoIResponseHead'),
            head('MaskResponseHead'),
        ],
    },
    'DETR-like': {
        **{
            name: COMMON[name]
            for name in ('pseudo labels', 'boxes', 'FGD', 'pyramid', 'manifold, pyramid')
        },
        'RPN': [head('RPNResponseHead')],
        'encoder memory': [head('EncoderMemoryHead')],
        'queries': [head('QueryAlignedHead', fresh=False)],
        'queries, random ones too': [head('QueryAlignedHead')],
        "student's queries": [head('StudentQueryHead')],
        'Hungarian': [head('HungarianQueryHead')],
        'Hungarian in each layer': [head('HungarianQueryHead', matching='each')],
        'query prior': [head('QueryPriorHead')],
        "encoder memory, RPN, queries, student's queries": [
            head('EncoderMemoryHead'),
            head('RPNResponseHead'),
            head('QueryAlignedHead', fresh=False, floor=1.0),
            head('StudentQueryHead'),
        ],
    },
    'one-stage': {
        **{name: COMMON[name] for name in ('pseudo labels', 'boxes', 'FGD')},
        'dense': [head('DenseResponseHead')],
        'CrossKD': [head('CrossKDHead', convs=1)],
        'pyramid, dense': [head('PyramidHead'), head('DenseResponseHead')],
    },
    # As published DETRs have them; the rows in which their number counts.
    **{
        f'DETR-like, {count} queries': {
            'queries': [head('QueryAlignedHead', fresh=False)],
            'Hungarian': [head('HungarianQueryHead')],
            **(
                {'Hungarian, 300 surest': [head('HungarianQueryHead', most=300)]}
                if count > 300
                else {}
            ),
            'Hungarian in each layer': [head('HungarianQueryHead', matching='each')],
        }
        for count in (100, 300, 900)
    },
    # Boxes as distributions: the dense answers are those of LD.
    'one-stage, GFL': {
        'pseudo labels': COMMON['pseudo labels'],
        'dense, LD': [head('DenseResponseHead')],
        'CrossKD': [head('CrossKDHead', convs=1)],
        'pyramid, dense, LD': [head('PyramidHead'), head('DenseResponseHead')],
    },
}


# Networks ----------------------------------------------------------------------------------------


def cascade_with_masks() -> Config:
    """The digits' ViTDet with three box heads and three mask heads."""
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / 'vitdet_digits.py')
    model = cfg.model
    model.type = 'CascadeRCNN'
    model.data_preprocessor.pad_mask = True
    roi = model.roi_head
    stages = [copy.deepcopy(roi.bbox_head) for _ in range(3)]
    for stage, share in zip(stages, (1.0, 0.5, 1 / 3), strict=True):
        stage.reg_class_agnostic = True
        stage.bbox_coder.target_stds = [s * share for s in (0.1, 0.1, 0.2, 0.2)]
    roi.update(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1.0, 0.5, 0.25],
        bbox_head=stages,
        mask_roi_extractor=dict(
            roi.bbox_roi_extractor, roi_layer=dict(type='RoIAlign', output_size=14)
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=4,
            in_channels=model.neck.out_channels,
            conv_out_channels=model.neck.out_channels,
            num_classes=10,
        ),
    )
    rcnn = model.train_cfg.rcnn
    rcnn.mask_size = 28
    model.train_cfg.rcnn = [copy.deepcopy(rcnn) for _ in range(3)]
    # Random classes are all alike; of a trained network's few are left for the suppression.
    model.test_cfg.rcnn.update(score_thr=0.3, mask_thr_binary=0.5)
    return cfg


def many_queries(count: int) -> Config:
    """The digits' DETR with more queries than its map has positions, which are therefore learnt."""
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / 'deformable_detr_digits.py')
    cfg.model.update(num_queries=count, as_two_stage=False)
    cfg.model.test_cfg.max_per_img = count
    return cfg


def slimmer(cfg: Config, **changes: Any) -> dict[str, Any]:
    """A student that is its teacher with other settings, whole paths below ``model``."""
    slim = copy.deepcopy(cfg)
    slim.merge_from_dict({f'model.{path}': value for path, value in changes.items()})
    return dict(config=plain(slim), init='random')


def plain(cfg: Config) -> dict[str, Any]:
    """What a run needs of a detector's config."""
    return dict(default_scope='mmdet', model=cfg.model.to_dict())


def drawn(family: str) -> tuple[Config, dict[str, Any]]:
    """A teacher whose weights are drawn at random, and its student, of a family without others."""
    if family.startswith('DETR-like'):
        return many_queries(int(family.split()[1])), dict(DETR_SHRUNK)
    if family == 'one-stage':
        cfg = load_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py')
        cfg.model.data_preprocessor.pad_size_divisor = 32
        # As of the others: the published .001 is for the metric, and lets all of .01 pass.
        cfg.model.test_cfg.score_thr = 0.05
        slim = {'backbone.widen_factor': 0.25, 'neck.in_channels': [64, 128, 256]}
    elif family == 'one-stage, GFL':
        cfg = load_config('mmdet::gfl/gfl_r50_fpn_1x_coco.py')
        cfg.model.backbone.init_cfg = None
        slim = {'backbone.depth': 18, 'neck.in_channels': [64, 128, 256, 512]}
    else:
        cfg = cascade_with_masks()
        slim = {'backbone.arch.num_layers': 4, 'backbone.arch.global_indices': (1, 3)}
    return cfg, slimmer(cfg, **slim)


def networks(family: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Teacher and student of a family, as a run names them."""
    if family in COMMITTED:
        name, student = COMMITTED[family]
        path = ROOT / 'configs' / 'digits' / name
        return dict(config=f'{path}.py', checkpoint=f'{path}.pth'), dict(student)
    cfg, student = drawn(family)
    net = build_network(load_config(plain(cfg)))
    # Its class biases above all: without, every place of a dense one is an object.
    net.init_weights()
    torch.save(dict(state_dict=net.state_dict()), folder / 'teacher.pth')
    return dict(config=plain(cfg), checkpoint=str(folder / 'teacher.pth')), student


def sees_the_objects(net: nn.Module) -> None:
    """Let a teacher be sure of :data:`OBJECTS` in every image, and of nothing else.

    What it would do itself is done before, and its time counts. Of a DETR-like network the first
    three queries answer so in every layer, which its detections follow; of others the boxes behind
    the suppression are replaced, where mask heads are then run.

    Args:
        net (nn.Module): A detector, changed in place.
    """
    from mmdet.models.dense_heads import DETRHead
    from mmengine.structures import InstanceData

    head = getattr(net, 'roi_head', net).bbox_head
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    boxes = torch.tensor(OBJECTS, dtype=torch.float32)
    labels = torch.arange(len(boxes))

    def answers(_, __, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        logits, places = (x.clone() for x in outputs)
        logits.fill_(-_CERTAIN)
        logits[..., labels, labels] = _CERTAIN
        x0, y0, x1, y1 = (boxes.to(places) / SIZE).unbind(-1)
        places[..., labels, :] = torch.stack(
            [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1
        )
        return logits, places

    def detections(*args, **kwargs) -> list[InstanceData]:
        return [
            InstanceData(
                bboxes=boxes.to(found.bboxes),
                scores=torch.full((len(boxes),), 0.9).to(found.scores),
                labels=labels.to(found.labels),
            )
            for found in own(*args, **kwargs)
        ]

    if isinstance(head, DETRHead):
        head.register_forward_hook(answers)
    else:
        own = head.predict_by_feat
        head.predict_by_feat = detections


def distiller_of(
    family: str, heads: Sequence[Mapping], folder: Path, device: str
) -> DataFreeDistiller:
    """The run of a row, started; images come from outside."""
    teacher, student = networks(family, folder)
    distiller = MODELS.build(
        dict(
            type='mmdfkd.DataFreeDistiller',
            teacher=teacher,
            student=student,
            heads=copy.deepcopy(list(heads)),
            source=dict(type='mmdfkd.RenderedSource'),
            image_size=SIZE,
        )
    ).to(device)
    distiller.seed, distiller.image_size, distiller.iteration = 0, (SIZE, SIZE), 0
    # The start is not measured: the student has the weights that it was built with.
    distiller.teacher.load()
    sees_the_objects(distiller.teacher.net)
    distiller.wrapper = build_optim_wrapper(distiller, OPTIMISER)
    distiller.train()
    return distiller


# Measuring ---------------------------------------------------------------------------------------


def ordinary_step(distiller: DataFreeDistiller, images: Tensor) -> Callable[[], None]:
    """Training step of mmdet, of the student alone as a network of its own, on :data:`OBJECTS`.

    Args:
        distiller (DataFreeDistiller): Whose student it is.
        images (Tensor): ``[B, 3, H, W]`` of bytes.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    net = build_network(distiller.student_cfg).to(images.device).train()
    wrapper = build_optim_wrapper(net, OPTIMISER)
    boxes = torch.tensor(OBJECTS, dtype=torch.float32)
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    samples = []
    for _ in images:
        shape = dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=shape)
        sample.gt_instances = InstanceData(
            bboxes=boxes.clone(),
            labels=torch.arange(3),
        )
        # RTMDet takes the centres of masks where there are any, and of another kind.
        if getattr(getattr(net, 'roi_head', None), 'with_mask', False):
            sample.gt_instances.masks = BitmapMasks(masks.numpy(), SIZE, SIZE)
        sample.ignored_instances = InstanceData(
            bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)

    def step() -> None:
        data = dict(inputs=list(images), data_samples=copy.deepcopy(samples))
        net.train_step(data, wrapper)

    step.net = net
    return step


def measure(
    distiller: DataFreeDistiller, images: Tensor, rounds: int
) -> tuple[dict[str, float], float]:
    """Measures of a row against the student's ordinary step, and the seconds of a step of it."""
    device, teacher = images.device, distiller.teacher.adapter.net
    ordinary, row = ordinary_step(distiller, images), step_of(distiller, images)
    steps = ordinary, row
    base = kept_bytes(ordinary, (ordinary.net,), nn.Identity())
    kept = kept_bytes(row, (distiller.student, teacher), distiller.student.heads)
    kept += sum(p.nbytes for p in teacher.parameters())
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for step, spent in zip(steps, times, strict=True):
            began = clock(device)
            step()
            spent.append(clock(device) - began)
    ratio = median(b / a for a, b in zip(*times, strict=True))
    found = dict(time=ratio, memory=kept / base, mib=kept / 2**20)
    return {name: round(value, 3) for name, value in found.items()}, median(times[1])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--set', nargs='+', choices=tuple(ROWS), default=list(ROWS))
    parser.add_argument('--rows', nargs='+', help='only these, by their name in the results')
    parser.add_argument('--rounds', type=int, default=5, help='steps of each that are timed')
    parser.add_argument('--batch', type=int, default=BATCH)
    parser.add_argument('--device', default='cpu', help="'cpu' or 'cuda'")
    parser.add_argument('--out', type=Path, default=RESULTS, help='file of the results')
    args = parser.parse_args(argv)
    known = {name for rows in ROWS.values() for name in rows}
    unknown = sorted(set(args.rows or ()) - known)
    if unknown:
        parser.error(f'--rows: there is no {unknown}; there is {sorted(known)}')
    if args.rounds < 1 or args.batch < 2:
        parser.error('--rounds must be at least 1 and --batch at least 2')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing."""
    args = parse_args(argv)
    from mmengine.registry import init_default_scope

    from mmdfkd.evaluation import append_result
    from mmdfkd.evaluation.benchmark import finished_runs
    from mmdfkd.evaluation.cost import count_parameters
    from mmdfkd.utils.run_files import project_commit

    init_default_scope('mmdet')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (args.batch, 3, SIZE, SIZE), dtype=torch.uint8)
    images = images.to(args.device)
    for family in args.set:
        where = family
        if (args.device, args.batch) != ('cpu', BATCH):
            where += f', {args.device}, batch {args.batch}'
        for name, heads in ROWS[family].items():
            if args.rows and name not in args.rows:
                continue
            if (where, name) in finished_runs(args.out, lambda line: (line['set'], line['row'])):
                continue
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                distiller = distiller_of(family, heads, Path(folder), args.device)
            found, seconds = measure(distiller, images, args.rounds)
            sizes = [
                count_parameters(n)[0]
                for n in (distiller.student.net, distiller.teacher.adapter.net)
            ]
            append_result(
                args.out,
                benchmark=RESULTS.stem,
                set=where,
                student=round(sizes[0] / sizes[1], 4),
                row=name,
                init='random',
                seed=0,
                metrics=found,
                teacher=None,
                ceiling=None,
                steps=args.rounds,
                seconds=round(seconds, 4),
                threads=1,
                commit=project_commit(),
                command=shlex.join(
                    [
                        *('python', 'tools/benchmarks/detector_cost.py', '--set', family),
                        *('--rows', name, '--rounds', str(args.rounds)),
                        *('--batch', str(args.batch), '--device', args.device),
                    ]
                ),
            )
            print(f'{where}, {name}: {found} in {time.perf_counter() - began:.0f} s', flush=True)


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
