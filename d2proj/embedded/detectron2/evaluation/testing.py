"""Printing, comparing and flattening nested results."""

import logging
import pprint
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]

_logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of ``{task: {metric: score}}`` in a form to paste into a spreadsheet."""
    assert isinstance(results, Mapping) or not results, results
    for task, scores in results.items():
        if not isinstance(scores, Mapping):
            _logger.info(f"copypaste: {task}={scores}")
            continue
        # Names with a dash are of single classes.
        main = {name: score for name, score in scores.items() if "-" not in name}
        _logger.info(f"copypaste: Task: {task}")
        _logger.info("copypaste: " + ",".join(main))
        _logger.info("copypaste: " + ",".join(f"{score:.4f}" for score in main.values()))


def verify_results(cfg: Any, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with those that the configuration expects.

    Args:
        cfg: ``cfg.TEST.EXPECTED_RESULTS`` lists (task, metric, score, tolerance).
        results: ``{task: {metric: score}}``.

    Returns:
        True; where a score is off by more than its tolerance, the process exits with status 1.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return True
    for task, metric, score, tolerance in expected:
        actual = results[task].get(metric, None)
        if actual is None or not np.isfinite(actual) or abs(actual - score) > tolerance:
            _logger.error("Result verification failed!")
            _logger.error("Expected Results: " + str(expected))
            _logger.error("Actual Results: " + pprint.pformat(results))
            sys.exit(1)
    _logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Make ``{"a/b/c": v}`` of ``{"a": {"b": {"c": v}}}``."""
    flat: dict[str, Any] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            inner = flatten_results_dict(value)
            flat.update({f"{name}/{key}": v for key, v in inner.items()})
        else:
            flat[name] = value
    return flat
