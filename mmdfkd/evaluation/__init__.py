"""Figures: tests, costs, the report of a run, and tables of committed results."""

from .agreement import detection_agreement, detections
from .cost import count_flops, count_parameters, interleaved_latency, predict_flops, proposal_count
from .failures import (
    Failures,
    box_iou,
    count_failures,
    failures_of,
    failures_table,
    find_objects,
)
from .finished_run import FinishedRun, FinishedRunError, read_curves
from .predictions import Annotation, ground_truth, image_of, prediction, seen_in, spread
from .results import (
    ResultError,
    append_result,
    insert_tables,
    read_results,
    results_markdown,
    write_text,
)
from .run import RunEvaluation, evaluate_run
from .table import markdown_report, text_table
from .testing import Tested, load_network, test_network

__all__ = [
    'Annotation',
    'Failures',
    'FinishedRun',
    'FinishedRunError',
    'ResultError',
    'RunEvaluation',
    'Tested',
    'append_result',
    'box_iou',
    'count_failures',
    'count_flops',
    'count_parameters',
    'detection_agreement',
    'detections',
    'evaluate_run',
    'failures_of',
    'failures_table',
    'find_objects',
    'ground_truth',
    'image_of',
    'insert_tables',
    'interleaved_latency',
    'load_network',
    'markdown_report',
    'predict_flops',
    'prediction',
    'proposal_count',
    'read_curves',
    'read_results',
    'results_markdown',
    'seen_in',
    'spread',
    'test_network',
    'text_table',
    'write_text',
]
