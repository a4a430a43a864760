"""Are the CUDA kernels right, free of races and synchronisation, and fast? Needs a GPU.

    python benchmarks/gpu_check.py [--sanitizer auto|off] [--output FILE]

Every op, in every dtype: equal to its CPU kernel; no host synchronisation inside
(``torch.cuda.set_sync_debug_mode("error")``); clean under compute-sanitizer's memcheck and
racecheck where that is installed; its time against torchvision's CUDA op. Prints, writes
benchmarks/results/gpu_check.json, and exits with status 1 if anything is wrong.

One function per op below; a new op adds one to CHECKS and, if it has a peer, one to TIMES.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from d2proj import info, ops
from d2proj.utils.testing import FLOATING, TOLERANCE, in_layout, random_rois

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_check.json"

# (what was checked, largest difference, tolerance)
Check = tuple[str, float, float]
# (what was timed, our call, the peer's call, bytes that must move)
Timing = tuple[str, Callable[[], Any], Callable[[], Any], int]


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    """Any wait of the host for the device inside raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference, infinite if the shapes or dtypes differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    return (a.double().cpu() - b.double().cpu()).abs().max().item() if a.numel() else 0.0


def check_roi_align() -> Iterator[Check]:
    """Forward, backward, deterministic backward, against the CPU kernel."""
    g = torch.Generator().manual_seed(0)
    for dtype in FLOATING:
        for layout in ("nchw", "nhwc", "sliced"):
            for channels in (1, 21, 64):
                for ratio, aligned in ((2, True), (-1, False)):
                    options = (0.5, 7, 3)
                    input = torch.randn(3, channels, 25, 33, generator=g).to(dtype)
                    rois = random_rois(100, 3, 70, generator=g)
                    input = in_layout(input, layout)
                    device_input = in_layout(input.cuda(), layout)
                    device_rois = rois.cuda()
                    name = f"roi_align {str(dtype)[6:]} {layout} C={channels} ratio={ratio}"
                    cpu = torch.ops.d2proj.roi_align(input, rois, *options, ratio, aligned)
                    with no_synchronisation():
                        got = torch.ops.d2proj.roi_align(
                            device_input, device_rois, *options, ratio, aligned
                        )
                    yield name, difference(got, cpu), 4 * TOLERANCE[dtype]
                    grad = torch.randn(cpu.shape, generator=g).to(dtype)
                    last = layout == "nhwc"
                    rest = (*options, *input.shape, ratio, aligned, last)
                    backward = torch.ops.d2proj._roi_align_backward
                    cpu = backward(grad, rois, *rest, False)
                    # Sums of many terms: the rounding grows with them.
                    tolerance = 40 * TOLERANCE[dtype]
                    device_grad = grad.cuda()
                    with no_synchronisation():
                        got = backward(device_grad, device_rois, *rest, False)
                        fixed = backward(device_grad, device_rois, *rest, True)
                        again = backward(device_grad, device_rois, *rest, True)
                    yield f"{name} backward", difference(got, cpu), tolerance
                    yield f"{name} backward, deterministic", difference(fixed, cpu), tolerance
                    yield f"{name} backward, deterministic, twice", difference(fixed, again), 0.0
    strange = torch.tensor(
        [[0, float("nan"), 0, 1, 1], [0, 0, 0, float("inf"), 1], [9, 0, 0, 4, 4], [-1, 0, 0, 4, 4]]
    ).cuda()
    input = torch.ones(1, 8, 6, 6, device="cuda")
    output = ops.roi_align(input, strange, 3)
    yield "roi_align: strange boxes pool to zero", difference(output, output * 0), 0.0
    huge = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30], [0, 0, 0, 1e9, 3.0]]).cuda()
    output = ops.roi_align(input, huge, 3)
    yield "roi_align: huge boxes are finite", float(not output.isfinite().all()), 0.0


def time_roi_align() -> Iterator[Timing]:
    """The shapes of specs/ops.md, both layouts, three dtypes."""
    g = torch.Generator().manual_seed(0)
    for layout in ("nchw", "nhwc"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            input = in_layout(torch.randn(2, 256, 200, 200, generator=g).to("cuda", dtype), layout)
            rois = random_rois(512, 2, 800, generator=g).cuda()
            # torchvision has no bfloat16 and wants boxes in the features' dtype.
            peer_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
            peer_input, peer_rois = input.to(peer_dtype), rois.to(peer_dtype)
            name = f"roi_align {layout} {str(dtype)[6:]}"
            output = ops.roi_align(input, rois, 7, 0.25, 2, True)
            moved = (input.numel() + output.numel()) * input.element_size()
            yield (
                f"{name} forward",
                lambda a=(input, rois, 7, 0.25, 2, True): ops.roi_align(*a),
                lambda a=(peer_input, peer_rois, 7, 0.25, 2, True): torchvision.ops.roi_align(*a),
                moved,
            )
            grad = torch.randn_like(output)
            peer_grad = grad.to(peer_dtype)
            rest = (0.25, 7, 7, *input.shape, 2, True)
            last = layout == "nhwc"
            yield (
                f"{name} backward",
                lambda a=(grad, rois, *rest, last, False): torch.ops.d2proj._roi_align_backward(*a),
                lambda a=(peer_grad, peer_rois, *rest): torch.ops.torchvision._roi_align_backward(
                    *a
                ),
                moved,
            )


def check_nms() -> Iterator[Check]:
    """Keep lists equal to the CPU's, with ties, NaN and classes; sizes about the chunk of 2048."""
    g = torch.Generator().manual_seed(0)
    for count in (0, 1, 64, 65, 1000, 2048, 2049, 20_000):
        for dtype in FLOATING:
            boxes = random_rois(count, 1, 800, generator=g)[:, 1:]
            boxes = boxes.double() if dtype == torch.float64 else boxes
            scores = torch.rand(count, generator=g).to(dtype)
            boxes[::97, 1], scores[::89] = float("nan"), float("nan")
            classes = torch.randint(20, (count,), generator=g) - 3
            for idxs in (None, classes):
                device_idxs = None if idxs is None else idxs.cuda()
                for threshold in (0.3, 0.7):
                    name = f"nms {count} {str(dtype)[6:]} classes={idxs is not None} {threshold}"
                    cpu, _ = ops.nms_padded(boxes, scores, threshold, idxs)
                    device_boxes, device_scores = boxes.cuda(), scores.cuda()
                    with no_synchronisation():
                        got, _ = ops.nms_padded(device_boxes, device_scores, threshold, device_idxs)
                    yield name, difference(got, cpu), 0.0


def time_nms() -> Iterator[Timing]:
    """Random boxes as in specs/ops.md; with the length read back as torchvision does, and not."""
    g = torch.Generator().manual_seed(0)
    for count in (1000, 5000, 20_000):
        sides = torch.rand(count, 2, generator=g) * 292 + 8
        corner = torch.rand(count, 2, generator=g) * (800 - sides)
        boxes = torch.cat([corner, corner + sides], 1).cuda()
        scores = torch.rand(count, generator=g).cuda()
        idxs = torch.randint(80, (count,), generator=g).cuda()
        moved = count * 28
        plain, classes = (boxes, scores, 0.7), (boxes, scores, idxs, 0.7)
        for name, ours in (("nms", ops.nms), ("nms_padded", ops.nms_padded)):
            yield (
                f"{name} {count}",
                lambda f=ours, a=plain: f(*a),
                lambda a=plain: torchvision.ops.nms(*a),
                moved,
            )
        yield (
            f"batched_nms {count}, 80 classes",
            lambda a=classes: ops.batched_nms(*a),
            lambda a=classes: torchvision.ops.batched_nms(*a),
            moved,
        )


CHECKS: dict[str, Callable[[], Iterator[Check]]] = {
    "roi_align": check_roi_align,
    "nms": check_nms,
}
TIMES: dict[str, Callable[[], Iterator[Timing]]] = {
    "roi_align": time_roi_align,
    "nms": time_nms,
}


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
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, __file__]
        done = subprocess.run(
            [*command, "--only-checks"], capture_output=True, text=True, check=False
        )
        tail = (done.stdout + done.stderr)[-2000:]
        results.append({"tool": check, "ok": done.returncode == 0, "note": tail})
    return results


def run_checks() -> list[dict[str, Any]]:
    """Every op's checks."""
    rows = []
    for op, checks in CHECKS.items():
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
    for op, times in TIMES.items():
        for name, ours_call, peer_call, moved in times():
            ours, peer = milliseconds(ours_call), milliseconds(peer_call)
            of_copy = moved / (ours / 1e3) / bandwidth
            rows.append(
                {
                    "op": op,
                    "case": name,
                    "ours_ms": ours,
                    "torchvision_ms": peer,
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
