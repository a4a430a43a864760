"""Trainings on bccd (blood cells, ``../shared/data/bccd``) through ``train_net.py``.

What the zoo and the recipes share: each run is a process of its own, as a user would start it.
"""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"
# Names of metrics in ``results.json``, as the tables show them.
METRICS = ("AP", "AP50", "AP75", "AP-Platelets", "AP-RBC", "AP-WBC")
RESIZE = "detectron2.data.transforms.Resize"
FLIP = "detectron2.data.transforms.RandomFlip"


class RunFailed(Exception):
    """A run ended with an error, or was stopped because it took too long."""


def data_overrides(split: str = "val") -> list[str]:
    """Training on ``train``, evaluation on ``split``."""
    root = SHARED / "bccd"
    return [
        "dataset.format=voc",
        f"dataset.train.root={root}",
        "dataset.train.split=train",
        f"dataset.val.root={root}",
        f"dataset.val.split={split}",
    ]


def resize_and_flip(height: int, width: int) -> list[str]:
    """Augmentations: one size for all, flips both ways (cells have no up and down)."""
    resize = f"{{_target_: {RESIZE}, shape: [{height}, {width}]}}"
    flips = [
        f"{{_target_: {FLIP}, horizontal: {across}, vertical: {down}}}"
        for across, down in (("true", "false"), ("false", "true"))
    ]
    return [
        f"data.train_augmentations=[{', '.join([resize, *flips])}]",
        f"data.val_augmentations=[{resize}]",
    ]


def train(
    config: str, overrides: Sequence[str], output: Path, *, threads: int, limit: float
) -> dict[str, Any]:
    """Train, evaluate the final weights, and give metrics (percent) and times.

    ``cpu_seconds`` are those of all threads and processes of the run: other work on the machine
    makes ``seconds`` longer, but hardly these. ``load`` is the machine's load average.

    Raises:
        RunFailed: with the last line that the run printed.
    """
    load = os.getloadavg()[0]
    started = time.perf_counter()
    arguments = ["--config-file", config, "--overwrite", f"train.output_dir={output}", *overrides]
    cpu = run_train_net(arguments, output, threads, limit)
    return {
        **metrics(output),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(cpu, 1),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }


def evaluate(output: Path, split: str, *, threads: int, limit: float) -> dict[str, float]:
    """Metrics of a run's final weights on another split; its ``results.json`` becomes this."""
    arguments = ["--config-file", str(output / "config.yaml"), "--eval-only"]
    arguments += [f"dataset.val.split={split}", f"train.output_dir={output}"]
    arguments += ["train.init_checkpoint=null"]  # not what the run started from: its own
    run_train_net(arguments, output, threads, limit)
    return metrics(output)


def metrics(output: Path) -> dict[str, float]:
    """The latest evaluation's, rounded."""
    found = json.loads((output / "results.json").read_text())["bbox"]
    # Without a detection there are no metrics of classes; without objects of a size they are null.
    return {name: round(found.get(name) or 0.0, 2) for name in METRICS}


def config_of(output: Path) -> Any:
    """The configuration that a run wrote."""
    from d2proj.engine.config import load_config

    return load_config(output / "config.yaml")


def run_train_net(arguments: Sequence[str], output: Path, threads: int, limit: float) -> float:
    """``train_net.py``; what it prints goes to ``<output>.txt``. Gives its CPU seconds."""
    command = [sys.executable, str(ROOT / "train_net.py"), *arguments]
    return run_logged(command, output.with_suffix(".txt"), threads, limit)


def run_logged(command: Sequence[str], log: Path, threads: int, limit: float) -> float:
    """Run a command with so many threads, its output into a file; gives its CPU seconds.

    Raises:
        RunFailed: it ended with an error, or had to be stopped after ``limit`` seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    with log.open("w") as stream:
        # A process group of its own, which ends with its loaders if it has to be stopped.
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        stop = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        stop.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            stop.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and time.monotonic() - started >= limit:
        raise RunFailed(f"stopped after {limit:.0f} s")
    if process.returncode:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        reason = lines[-1] if lines else "nothing printed"
        raise RunFailed(f"status {process.returncode}: {reason}")
    return usage.ru_utime + usage.ru_stime


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    import d2proj

    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "d2proj": d2proj.__version__,
        "torch": torch.__version__,
        "cpu": cpu.group(1) if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
    }


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers ``<!-- name -->`` and ``<!-- /name -->``."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, rest = page.read_text().split(begin)
    _, tail = rest.split(end)
    page.write_text(f"{head}{begin}{text.rstrip()}\n{end}{tail}")


def save(report: Mapping[str, Any], path: Path) -> None:
    """Write in one rename: an interrupted benchmark loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(path)
