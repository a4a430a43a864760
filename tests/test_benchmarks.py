"""The ops' memory stays within what their pages promise; the benchmark scripts run."""

import json
from pathlib import Path

import pytest

from benchmarks.speed_pages import fill
from d2proj.utils.testing import run_python


def test_peak_memory_of_every_op_is_within_its_documented_bound(tmp_path: Path) -> None:
    """In a process of its own: pages that other tests left would hide what a call needs."""
    output = tmp_path / "memory.json"
    code = f"""
import sys
sys.argv = ["ops", "--memory", "--output", {str(output)!r}]
from benchmarks import ops
sys.exit(ops.main())
"""
    done = run_python(code, {"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert {"nms", "roi_align"} <= {row["op"] for row in rows}
    assert any(row["extra"] > 0 for row in rows)  # the measurement measures


def test_times_are_measured_and_written(tmp_path: Path) -> None:
    output = tmp_path / "times.json"
    code = f"""
import sys
sys.argv = ["ops", "--quick", "--ops", "nms", "--seconds", "0.01", "--output", {str(output)!r}]
from benchmarks import ops
sys.exit(ops.main())
"""
    done = run_python(code, {})
    assert done.returncode == 0, done.stdout + done.stderr
    for row in json.loads(output.read_text())["rows"]:
        assert min(row["ours_ms"], row["peer_ms"], row["floor_ms"]) > 0


def test_tables_replace_what_was_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a <!-- x -->\nold\n<!-- /x --> b\n")
    for text in ("| new |", "| newer |"):
        fill(page, "x", text)
        assert page.read_text() == f"a <!-- x -->\n{text}\n<!-- /x --> b\n"
    with pytest.raises(ValueError, match="has no <!-- y -->"):
        fill(page, "y", "")
