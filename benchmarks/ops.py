"""How fast the ops are: ours, a peer, the ratio, the floor, and how far from it.

    python benchmarks/ops.py [--ops roi_align,nms] [--threads 1,2] [--seconds 1.0] [--quick]

Prints a table and writes benchmarks/results/ops_cpu.json. Ours and the peer are timed in turns, so
that a busy machine slows both; a time is the median of its turns. The floor is the time to move the
bytes that the op must read and write, at the bandwidth of a copy measured in the same run.

One function per op below yields its cases; a new op adds a function to CASES.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from d2proj import info, ops

RESULTS = Path(__file__).resolve().parent / "results" / "ops_cpu.json"


@dataclasses.dataclass
class Case:
    """One row: two functions that do the same, and the bytes that they cannot avoid moving."""

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    peer_name: str
    bytes: int


def size_of(*tensors: Tensor) -> int:
    """Bytes of the tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors)


def random_rois(count: int, images: int, size: float, low: float = 8, high: float = 300) -> Tensor:
    """(count, 5) boxes with sides of ``low`` to ``high`` in a ``size`` square."""
    sides = (torch.rand(count, 2) * (high - low) + low).clamp(max=size)
    corner = torch.rand(count, 2) * (size - sides)
    return torch.cat([torch.randint(images, (count, 1)), corner, corner + sides], 1)


def touched(input: Tensor, rois: Tensor, scale: float) -> int:
    """Bytes of a map that boxes cover: what an ideal roi_align would read."""
    n, c, h, w = input.shape
    mask = torch.zeros(n, h, w, dtype=torch.bool)
    for i, x1, y1, x2, y2 in rois.tolist():
        rows = slice(max(0, int(y1 * scale)), int(y2 * scale) + 2)
        mask[int(i), rows, max(0, int(x1 * scale)) : int(x2 * scale) + 2] = True
    return int(mask.sum()) * c * input.element_size()


def roi_align_cases(quick: bool) -> Iterator[Case]:
    """roi_align, 7 x 7 bins, 2 x 2 samples, stride 4, against torchvision."""
    shapes = [  # boxes, images, channels, side of the map, layout, dtype
        (512, 2, 256, 200, "nchw", torch.float32),
        (512, 2, 256, 200, "nhwc", torch.float32),
        (512, 2, 256, 200, "nchw", torch.float64),
        (100, 1, 256, 50, "nchw", torch.float32),
        (1000, 1, 256, 100, "nchw", torch.float32),
        (100, 1, 8, 200, "nchw", torch.float32),
        (10, 1, 8, 200, "nchw", torch.float32),
        (10, 1, 8, 50, "nchw", torch.float32),
    ]
    for k, n, c, side, layout, dtype in shapes[:1] if quick else shapes:
        input = torch.randn(n, c, side, side, dtype=dtype)
        if layout == "nhwc":
            input = input.contiguous(memory_format=torch.channels_last)
        rois = random_rois(k, n, side * 4).to(dtype)
        name = f"{k} boxes, {n}x{c}x{side}x{side} {layout} {str(dtype)[6:]}"
        output = ops.roi_align(input, rois, 7, 0.25, 2, True)
        yield Case(
            f"roi_align forward: {name}",
            lambda a=(input, rois, 7, 0.25, 2, True): ops.roi_align(*a),
            lambda a=(input, rois, 7, 0.25, 2, True): torchvision.ops.roi_align(*a),
            "torchvision",
            touched(input, rois, 0.25) + size_of(output),
        )
        grad = torch.randn_like(output)
        args = (grad, rois, 0.25, 7, 7, *input.shape, 2, True)
        yield Case(
            f"roi_align backward: {name}",
            lambda a=(*args, layout == "nhwc", False): torch.ops.d2proj._roi_align_backward(*a),
            lambda a=args: torch.ops.torchvision._roi_align_backward(*a),
            "torchvision",
            size_of(input, grad),
        )


def nms_cases(quick: bool) -> Iterator[Case]:
    """Both nms and batched_nms (80 classes): random boxes and the extremes, against torchvision.

    torchvision's nms is quadratic: 100 000 boxes of one class would take it a minute a call, so
    that row compares with its batched_nms of 80 classes.
    """
    sizes = (1000,) if quick else (10, 100, 1000, 5000, 20_000, 100_000)
    sets = {f"{n} random boxes": random_rois(n, 1, 800)[:, 1:] for n in sizes}
    if not quick:
        n = torch.arange(20_000)
        corner = torch.stack([n % 200, n // 200], 1) * 20.0
        sets["20000 disjoint boxes"] = torch.cat([corner, corner + 10], 1)
        sets["20000 equal boxes"] = torch.tensor([[10.0, 10, 60, 60]]).repeat(len(n), 1)
        sets["20000 tiny boxes"] = random_rois(len(n), 1, 800, 0.5, 3)[:, 1:]
        sets["20000 huge boxes"] = random_rois(len(n), 1, 800, 600, 800)[:, 1:]
    for name, boxes in sets.items():
        count = len(boxes)
        scores, idxs = torch.rand(count), torch.randint(80, (count,))
        classes = (boxes, scores, idxs, 0.7)
        moved = size_of(boxes, scores, ops.nms(boxes, scores, 0.7))
        if count < 100_000:
            peer = (torchvision.ops.nms, (boxes, scores, 0.7), "torchvision")
        else:
            peer = (torchvision.ops.batched_nms, classes, "torchvision, 80 classes")
        yield Case(
            f"nms: {name}",
            lambda a=(boxes, scores, 0.7): ops.nms(*a),
            lambda f=peer[0], a=peer[1]: f(*a),
            peer[2],
            moved,
        )
        if name.endswith("random boxes"):
            yield Case(
                f"batched_nms, 80 classes: {name}",
                lambda a=classes: ops.batched_nms(*a),
                lambda a=classes: torchvision.ops.batched_nms(*a),
                "torchvision",
                moved + size_of(idxs),
            )


CASES: dict[str, Callable[[bool], Iterator[Case]]] = {
    "roi_align": roi_align_cases,
    "nms": nms_cases,
}


def copy_bandwidth() -> float:
    """Bytes per second, read and written together, of a large copy."""
    source = torch.zeros(32 << 20, dtype=torch.float32)
    target = torch.empty_like(source)
    target.copy_(source)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begin)
    return 2 * size_of(source) / min(times)


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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", default=",".join(CASES), help="which, comma-separated")
    parser.add_argument("--threads", default=str(torch.get_num_threads()), help="e.g. 1,2")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each row")
    parser.add_argument("--quick", action="store_true", help="only each op's first shape")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    print(
        f"{'op':<62}{'thr':>4}{'ours ms':>10}{'peer ms':>10}{'ratio':>8}{'floor':>9}{'/floor':>8}"
    )
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        bandwidth = copy_bandwidth()
        for op in options.ops.split(","):
            torch.manual_seed(0)
            for case in CASES[op](options.quick):
                ours, peer = measure(case, options.seconds)
                floor = case.bytes / bandwidth
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
                    f"{case.name:<62}{threads:>4}{ours * 1e3:>10.3f}{peer * 1e3:>10.3f}"
                    f"{peer / ours:>7.1f}x{floor * 1e3:>9.3f}{ours / floor:>7.1f}x",
                    flush=True,
                )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {**info.versions(), "library": info.library()}
    options.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
