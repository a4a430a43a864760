"""Metrics, speed, tables and pictures of a detector's output."""

from d2proj.evaluation.coco import CocoEvaluation, save_results
from d2proj.evaluation.inference import Speed, evaluating, run_inference
from d2proj.evaluation.report import results_table

__all__ = [
    "CocoEvaluation",
    "Speed",
    "evaluating",
    "results_table",
    "run_inference",
    "save_results",
]
