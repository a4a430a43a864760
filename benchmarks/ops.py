"""How fast the ops are: ours, a peer, the ratio, the floor, and how far from it.

    python -m benchmarks.ops [--ops roi_align,nms] [--threads 1,2] [--seconds 1] [--quick]
    python -m benchmarks.ops --memory

Prints a table and writes benchmarks/results/ops_cpu.json. Ours and the peer are timed in turns, so
that a busy machine slows both; a time is the median of its turns. The floor is the time to move the
bytes that the op must read and write, at the bandwidth of a copy measured in the same run, or,
where that is longer, to do the arithmetic at the speed of a matrix product measured in it.
With ``--memory`` the peak memory of each op beside its result is measured instead, and written to
benchmarks/results/ops_memory.json.

What is measured is in benchmarks/op_cases, one module per op.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks import op_cases
from benchmarks.op_cases.common import Case, MemoryCase, size_of
from d2proj import info

RESULTS = Path(__file__).resolve().parent / "results"
# What resident memory varies by of itself: pages come in steps, the allocator keeps some.
MEMORY_NOISE = 1 << 20


def copy_bandwidth() -> float:
    """Bytes per second, read and written together, of a large copy."""
    source = torch.ones(32 << 20, dtype=torch.float32)
    target = torch.empty_like(source)
    target.copy_(source)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begin)
    return 2 * size_of(source) / min(times)


def matmul_flops() -> float:
    """Floating-point operations per second of a large float32 matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - begin)
    return 2 * 2048**3 / min(times)


def measure(case: Case, seconds: float) -> tuple[float, float]:
    """Median seconds of ours and of the peer, in turns, for about ``seconds``."""
    times: tuple[list[float], list[float]] = ([], [])
    case.ours(), case.peer()
    deadline = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < deadline:
        for function, record in zip((case.ours, case.peer), times, strict=True):
            begin = time.perf_counter()
            function()
            record.append(time.perf_counter() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def peak_extra_bytes(case: MemoryCase) -> int:
    """The most memory that the call held beside its result, of resident pages.

    The kernel's high-water mark is reset first (Linux), and the allocator is made to give freed
    memory back, so that no page of an earlier call hides one of this. Code and threads' stacks are
    touched by a first, unmeasured call.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: each large block is mapped, and unmapped when freed

    def status(field: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if field in x)
        return int(line.split()[1]) * 1024

    case.call()
    found = []
    for _ in range(3):
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        result = case.call()
        peak = status("VmHWM")
        kept = _tensors(result)
        found.append(peak - before - size_of(*kept))
        del result, kept
    return max(0, min(found))


def _tensors(result: object) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for r in result for t in _tensors(r)] if isinstance(result, (tuple, list)) else []


def machine() -> dict[str, object]:
    """What the numbers were measured with."""
    return {**info.versions(), "library": info.library()}


def run_memory(names: list[str], output: Path) -> int:
    """Measure every memory case; the exit status."""
    rows = []
    over = 0
    for op, cases in op_cases.find("memory_cases").items():
        if op not in names:
            continue
        torch.manual_seed(0)
        for case in cases():
            extra = peak_extra_bytes(case)
            over += extra > case.bound + MEMORY_NOISE
            rows.append({"op": op, "case": case.name, "extra": extra, "bound": case.bound})
            print(f"{case.name:<70}{extra / 1e6:>9.2f} MB, bound {case.bound / 1e6:>9.2f} MB")
    output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"written: {output}; {over} over their bound")
    return 1 if over else 0


def run_times(names: list[str], options: argparse.Namespace, output: Path) -> int:
    """Measure every row; the exit status."""
    rows = []
    print(
        f"{'op':<70}{'thr':>4}{'ours ms':>10}{'peer ms':>10}{'ratio':>8}{'floor':>9}{'/floor':>8}"
    )
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        bandwidth, speed = copy_bandwidth(), matmul_flops()
        for op, cases in op_cases.find("cpu_cases").items():
            if op not in names:
                continue
            torch.manual_seed(0)
            for case in cases(options.quick):
                ours, peer = measure(case, options.seconds)
                floor = max(case.bytes / bandwidth, case.flops / speed)
                rows.append(
                    {
                        "op": op,
                        "case": case.name,
                        "threads": threads,
                        "ours_ms": ours * 1e3,
                        "peer": case.peer_name,
                        "peer_ms": peer * 1e3,
                        "ratio": peer / ours,
                        "floor_ms": floor * 1e3,
                        "ours_over_floor": ours / floor,
                    }
                )
                print(
                    f"{case.name:<70}{threads:>4}{ours * 1e3:>10.3f}{peer * 1e3:>10.3f}"
                    f"{peer / ours:>7.1f}x{floor * 1e3:>9.3f}{ours / floor:>7.1f}x",
                    flush=True,
                )
    output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    slower = [row for row in rows if row["ratio"] < 1]
    print(f"written: {output}; {len(slower)} of {len(rows)} rows slower than their peer")
    return 0


def main() -> int:
    """Measure, print, write."""
    known = sorted({*op_cases.find("cpu_cases"), *op_cases.find("memory_cases")})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", default=",".join(known), help="which, comma-separated")
    parser.add_argument("--threads", default=str(torch.get_num_threads()), help="e.g. 1,2")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each row")
    parser.add_argument("--quick", action="store_true", help="only each op's first shape")
    parser.add_argument("--memory", action="store_true", help="peak extra memory, not time")
    parser.add_argument("--output", type=Path, help="the json to write (benchmarks/results/...)")
    options = parser.parse_args()
    names = options.ops.split(",")
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"--ops: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    name = "ops_memory.json" if options.memory else "ops_cpu.json"
    output = options.output or RESULTS / name
    output.parent.mkdir(parents=True, exist_ok=True)
    return run_memory(names, output) if options.memory else run_times(names, options, output)


if __name__ == "__main__":
    sys.exit(main())
