"""Figures: tests, costs, the report of a run, and tables of committed results."""

from .cost import count_flops, count_parameters, interleaved_latency, predict_flops, proposal_count
from .finished_run import FinishedRun, FinishedRunError, read_curves
from .predictions import Annotation, ground_truth, image_of, prediction, seen_in, spread
from .results import (
    ResultError,
    append_result,
    insert_table,
    read_results,
    results_markdown,
    write_text,
)
from .run import RunEvaluation, evaluate_run
from .table import markdown_report, text_table
from .testing import Tested, test_network

__all__ = [
    'Annotation',
    'FinishedRun',
    'FinishedRunError',
    'ResultError',
    'RunEvaluation',
    'Tested',
    'append_result',
    'count_flops',
    'count_parameters',
    'evaluate_run',
    'ground_truth',
    'image_of',
    'insert_table',
    'interleaved_latency',
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
