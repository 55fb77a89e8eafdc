"""The figures of a run: teacher, student at its start, and student, on the run's own test set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate

from mmdfkd.adapters import Adapter, Normalizer, build_adapter

from .cost import count_parameters, interleaved_latency, predict_flops, proposal_count
from .finished_run import FinishedRun
from .predictions import spread
from .retention import retention
from .testing import Tested, test_network

# Under these names an evaluator reports what the report shows: the last part of the key, best
# known first.
METRICS: dict[str, tuple[str, ...]] = {
    'bbox_mAP': ('bbox_mAP', 'mAP'),
    'bbox_mAP_50': ('bbox_mAP_50', 'AP50'),
    'accuracy': ('top1', 'accuracy'),
}
_LATENCY_IMAGES = 4


@dataclass
class RunEvaluation:
    """What :func:`evaluate_run` found.

    Attributes:
        report: The contents of ``report.json``.
        teacher: The tested teacher.
        student: The tested student.
        adapter: The teacher's adapter.
    """

    report: dict[str, Any]
    teacher: Tested
    student: Tested
    adapter: Adapter


def pick_metrics(metrics: Mapping[str, float], wanted: tuple[str, ...]) -> dict[str, float]:
    """The report's metrics among an evaluator's.

    Args:
        metrics (Mapping): As returned by ``Runner.test()``, such as ``{'coco/bbox_mAP': 0.6}``.
        wanted (tuple[str]): Keys of :data:`METRICS`; the first is the main one.

    Raises:
        KeyError: If the evaluator reports something, but not the main metric.
    """
    by_name = {key.rsplit('/', 1)[-1]: value for key, value in metrics.items()}
    picked = {}
    for name in wanted:
        found = [by_name[key] for key in METRICS[name] if key in by_name]
        if found:
            picked[name] = float(found[0])
    if wanted[0] not in picked:
        if by_name:
            raise KeyError(
                f'The test evaluator reports {sorted(by_name)}, but none of '
                f'{list(METRICS[wanted[0]])}, which the report compares teacher and student by.'
            )
        # mmdet's COCO metric returns nothing at all where a network detects nothing.
        picked = dict.fromkeys(wanted, 0.0)
    return picked


def _adapter(tested: Tested, input_order: str = 'auto') -> Adapter:
    return build_adapter(tested.net, Normalizer.from_config(tested.cfg, input_order))


def _latencies(networks: Mapping[str, Tested]) -> dict[str, float]:
    """Median milliseconds of a single image's predict on the CPU, preprocessing included."""
    devices = {name: next(t.net.parameters()).device for name, t in networks.items()}
    calls = {}
    for name, tested in networks.items():
        batches = [
            pseudo_collate([tested.dataset[i]])
            for i in spread(len(tested.dataset), _LATENCY_IMAGES)
        ]
        tested.net.to('cpu')
        calls[name] = partial(_predict, tested.net, batches)
    try:
        return interleaved_latency(calls)
    finally:
        for name, tested in networks.items():
            tested.net.to(devices[name])


def _predict(net: torch.nn.Module, batches: list, index: int) -> None:
    net.test_step(batches[index % len(batches)])


def _input_size(tested: Tested) -> tuple[int, int]:
    """``(H, W)`` of the network's input for the first test image."""
    data = tested.net.data_preprocessor(pseudo_collate([tested.dataset[0]]), False)
    height, width = data['inputs'].shape[-2:]
    return int(height), int(width)


def evaluate_run(
    run: FinishedRun, options: Mapping[str, Any] | None = None, say: Callable[[str], None] = print
) -> RunEvaluation:
    """Test and measure the networks of a run.

    FLOPs are of the first test image's input size, teacher and student at as many proposals as the
    teacher's ``test_cfg`` allows (or the student's, where it alone has any). Latencies are of
    single images on the CPU, teacher and student in turn.

    Args:
        run (FinishedRun): The run.
        options (Mapping, optional): Dotted config keys to change in the tests.
        say (Callable): Given a line before each part.

    Raises:
        FinishedRunError: If the run is not complete.
        CheckpointMismatchError: If a file's weights are not those of its config.
    """
    facts = run.read()
    # Before the first test: a missing file is told at once.
    teacher_checkpoint = run.teacher_checkpoint(facts)
    logs = run.report_dir / 'tests'

    def test(name: str, config: Path, checkpoint: str | Path) -> Tested:
        say(f'Testing the {name} ...')
        return test_network(config, checkpoint, logs / f'{name.replace(" ", "_")}.log', options)

    teacher = test('teacher', run.teacher_config, teacher_checkpoint)
    orders = facts.get('input_order', 'auto'), facts.get('student_input_order', 'auto')
    adapter = _adapter(teacher, orders[0])
    wanted = ('accuracy',) if adapter.family == 'classifier' else ('bbox_mAP', 'bbox_mAP_50')
    # Before the other tests: an evaluator of something else is told at once.
    pick_metrics(teacher.metrics, wanted)
    start = None
    if run.student_start.is_file():
        start = test('student at start', run.student_config, run.student_start).metrics
    student = test('student', run.student_config, run.student)

    say('Measuring what they cost ...')
    size = _input_size(teacher)
    # Of a teacher that has none, the student's own.
    proposals = proposal_count(teacher.net) or proposal_count(student.net)
    latencies = _latencies({'teacher': teacher, 'student': student})

    def entry(name: str, tested: Tested, own: Adapter) -> dict[str, Any]:
        params, backbone = count_parameters(tested.net)
        return dict(
            pick_metrics(tested.metrics, wanted),
            params=params,
            backbone_params=backbone,
            flops=predict_flops(own, size, proposals),
            latency_ms=round(latencies[name], 3),
        )

    report: dict[str, Any] = dict(
        teacher=entry('teacher', teacher, adapter),
        student=entry('student', student, _adapter(student, orders[1])),
    )
    main = wanted[0]
    reference = report['teacher'][main], report['teacher'].get('bbox_mAP_50')
    report['retention'] = retention(report['student'][main], *reference)
    report['student_at_start'] = pick_metrics(start, wanted) if start is not None else None
    report['retention_at_start'] = (
        retention(report['student_at_start'][main], *reference) if start is not None else None
    )
    for key in ('train_images_read', 'steps', 'seconds', 'seed', 'commit'):
        report[key] = facts.get(key)
    report.update(
        test_images=len(teacher.dataset),
        input_size=list(size),
        proposals=proposals,
        report_threads=torch.get_num_threads(),
        **{key: value for key, value in facts.items() if key not in report},
    )
    return RunEvaluation(report, teacher, student, adapter)
