"""Figures: tests, costs, the report of a run, and tables of committed results."""

from .agreement import (
    class_probabilities,
    classification_agreement,
    detection_agreement,
    detections,
)
from .collapse import CollapseLimits, find_collapse
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
from .image_quality import Seen, describe_quality, near_duplicates, quality_of, see
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
    'CollapseLimits',
    'Failures',
    'FinishedRun',
    'FinishedRunError',
    'ResultError',
    'RunEvaluation',
    'Seen',
    'Tested',
    'append_result',
    'box_iou',
    'count_failures',
    'count_flops',
    'count_parameters',
    'describe_quality',
    'class_probabilities',
    'classification_agreement',
    'detection_agreement',
    'detections',
    'evaluate_run',
    'failures_of',
    'failures_table',
    'find_collapse',
    'find_objects',
    'ground_truth',
    'image_of',
    'insert_tables',
    'interleaved_latency',
    'load_network',
    'markdown_report',
    'near_duplicates',
    'predict_flops',
    'prediction',
    'proposal_count',
    'quality_of',
    'read_curves',
    'read_results',
    'results_markdown',
    'see',
    'seen_in',
    'spread',
    'test_network',
    'text_table',
    'write_text',
]
