"""Are the CUDA kernels right, free of races and synchronisation, and fast? Needs a GPU.

    python -m benchmarks.gpu_check [--sanitizer auto|off] [--output FILE]

Every op, in every dtype: equal to its CPU kernel; no host synchronisation inside
(``torch.cuda.set_sync_debug_mode("error")``); clean under compute-sanitizer's memcheck and
racecheck where that is installed; its time against torchvision's CUDA op. Prints, writes
benchmarks/results/gpu_check.json, and exits with status 1 if anything is wrong.

What is checked and timed is in benchmarks/op_cases, one module per op.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import op_cases
from d2proj import info

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_check.json"


def milliseconds(function: Callable[[], Any], repeat: int = 30) -> float:
    """Median device time of a call."""
    for _ in range(3):
        function()
    pairs = []
    for _ in range(repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) for begin, end in pairs)[repeat // 2]


def copy_bandwidth() -> float:
    """Bytes per second, read and written together, of a large copy on the device."""
    source = torch.zeros(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / (milliseconds(lambda: target.copy_(source)) / 1e3)


def sanitize() -> list[dict[str, Any]]:
    """This script's own checks, under compute-sanitizer's tools."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return [{"tool": "compute-sanitizer", "ok": None, "note": "not installed"}]
    results = []
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable]
        done = subprocess.run(
            [*command, "-m", "benchmarks.gpu_check", "--only-checks"],
            capture_output=True,
            text=True,
            check=False,
        )
        tail = (done.stdout + done.stderr)[-2000:]
        results.append({"tool": check, "ok": done.returncode == 0, "note": tail})
    return results


def run_checks() -> list[dict[str, Any]]:
    """Every op's checks."""
    rows = []
    for op, checks in op_cases.find("gpu_checks").items():
        for name, found, allowed in checks():
            rows.append({"op": op, "check": name, "difference": found, "allowed": allowed})
            if not found <= allowed:
                print(f"WRONG  {name}: difference {found:.3g}, allowed {allowed:.3g}")
    return rows


def run_times() -> list[dict[str, Any]]:
    """Every op's times, with the bandwidth that they come to."""
    bandwidth = copy_bandwidth()
    print(f"copy: {bandwidth / 1e12:.2f} TB/s")
    rows = []
    for op, times in op_cases.find("gpu_times").items():
        for name, ours_call, peer_call, moved in times():
            ours, peer = milliseconds(ours_call), milliseconds(peer_call)
            of_copy = moved / (ours / 1e3) / bandwidth
            rows.append(
                {
                    "op": op,
                    "case": name,
                    "ours_ms": ours,
                    "peer_ms": peer,
                    "ratio": peer / ours,
                    "of_copy_bandwidth": of_copy,
                }
            )
            print(
                f"{name:<44}{ours:>9.3f} ms{peer:>9.3f} ms{peer / ours:>7.1f}x"
                f"{of_copy:>7.0%} of a copy's bandwidth"
            )
    return rows


def main() -> int:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitizer", choices=("auto", "off"), default="auto")
    parser.add_argument("--only-checks", action="store_true", help="no times, no file written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: gpu_check needs a CUDA device", file=sys.stderr)
        return 2
    checks = run_checks()
    wrong = [row for row in checks if not row["difference"] <= row["allowed"]]
    print(f"{len(checks)} checks, {len(wrong)} wrong")
    if options.only_checks:
        return 1 if wrong else 0
    times = run_times()
    sanitizer = sanitize() if options.sanitizer == "auto" else []
    for row in sanitizer:
        print(f"{row['tool']}: {'clean' if row['ok'] else row['note']}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": {**info.versions(), "library": info.library()},
        "checks": checks,
        "times": times,
        "sanitizer": sanitizer,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {options.output}")
    return 1 if wrong or any(row["ok"] is False for row in sanitizer) else 0


if __name__ == "__main__":
    sys.exit(main())
