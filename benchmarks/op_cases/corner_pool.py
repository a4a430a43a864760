"""corner_pool and corner_pool_pair, against flip and torch.cummax."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.op_cases.common import (
    Case,
    Check,
    MemoryCase,
    Timing,
    difference,
    no_synchronisation,
    size_of,
)
from d2proj import ops
from d2proj.utils.testing import FLOATING, TOLERANCE, in_layout

SCANS = {"top": (2, True), "bottom": (2, False), "left": (3, True), "right": (3, False)}
BACKWARD = torch.ops.d2proj._corner_pool_backward
PAIR_BACKWARD = torch.ops.d2proj._corner_pool_pair_backward


def by_cummax(x: Tensor, direction: str) -> Tensor:
    """What mmcv does."""
    dim, from_end = SCANS[direction]
    return x.flip(dim).cummax(dim)[0].flip(dim) if from_end else x.cummax(dim)[0]


def pair_by_cummax(a: Tensor, b: Tensor) -> Tensor:
    """The top-left corner's sum."""
    return by_cummax(a, "top") + by_cummax(b, "left")


def back(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a graph that is kept."""
    return torch.autograd.grad(output, inputs, output.detach(), retain_graph=True)


def cpu_cases(quick: bool) -> Iterator[Case]:
    """CornerNet's map (128 channels of 128 x 128), its dtypes and layouts, and small maps."""
    shapes = [
        ((2, 128, 128, 128), "nchw", torch.float32),
        ((2, 128, 128, 128), "nhwc", torch.float32),
        ((2, 128, 128, 128), "nchw", torch.bfloat16),
        ((2, 128, 128, 128), "nchw", torch.float64),
        ((1, 128, 64, 64), "nchw", torch.float32),
        ((1, 16, 32, 32), "nchw", torch.float32),
        ((1, 1, 8, 8), "nchw", torch.float32),
        ((1, 16, 1000, 1000), "nchw", torch.float32),
    ]
    for shape, layout, dtype in shapes[:1] if quick else shapes:
        a, b = (in_layout(torch.randn(shape).to(dtype), layout).requires_grad_() for _ in range(2))
        x_a, x_b = a.detach(), b.detach()
        name = f"{'x'.join(map(str, shape))} {layout} {str(dtype)[6:]}"
        for direction, (dim, from_end) in SCANS.items():
            graph = by_cummax(a, direction)
            yield Case(
                f"corner_pool {direction} forward: {name}",
                lambda a=x_a, d=direction: ops.corner_pool(a, d),
                lambda a=x_a, d=direction: by_cummax(a, d),
                "flip + cummax",
                size_of(a) * 2,
            )
            yield Case(
                f"corner_pool {direction} backward: {name}",
                lambda a=x_a, r=(dim, from_end): BACKWARD(a, a, *r),
                lambda o=graph, a=a: back(o, a),
                "flip + cummax",
                size_of(a) * 3,
            )
        graph = pair_by_cummax(a, b)
        yield Case(
            f"corner_pool_pair forward: {name}",
            lambda a=x_a, b=x_b: ops.corner_pool_pair(a, b, "top_left"),
            lambda a=x_a, b=x_b: pair_by_cummax(a, b),
            "flip + cummax",
            size_of(a) * 3,
        )
        yield Case(
            f"corner_pool_pair backward: {name}",
            lambda a=x_a, b=x_b: PAIR_BACKWARD(a, a, b, True),
            lambda o=graph, a=a, b=b: back(o, a, b),
            "flip + cummax",
            size_of(a) * 5,
        )


def memory_cases() -> Iterator[MemoryCase]:
    """A bit an element of what a task scans and its maxima, or two rows' maxima."""
    threads = torch.get_num_threads()
    for layout in ("nchw", "nhwc"):
        a = in_layout(torch.randn(2, 64, 128, 128), layout)
        bound = threads * (384 << 10)
        for name, call in (
            ("left", lambda a=a: ops.corner_pool(a, "left")),
            ("left backward", lambda a=a: BACKWARD(a, a, 3, True)),
            ("pair", lambda a=a: ops.corner_pool_pair(a, a, "top_left")),
            ("pair backward", lambda a=a: PAIR_BACKWARD(a, a, a, True)),
        ):
            yield MemoryCase(f"corner_pool {name} {layout}", call, bound)


def gpu_checks() -> Iterator[Check]:
    """Every direction, dtype and layout against the CPU; lengths about the kernels' chunks."""
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5, 7), (1, 4, 128, 128), (2, 8, 130, 36), (1, 2, 300, 260), (3, 64, 9, 20))
    for dtype in FLOATING:
        for layout in ("nchw", "nhwc", "sliced"):
            for shape in shapes:
                a, b, up = (torch.randn(shape, generator=g).relu().to(dtype) for _ in range(3))
                a.view(-1)[::501] = float("nan")
                a, b = in_layout(a, layout), in_layout(b, layout)
                device = [in_layout(t.cuda(), layout) for t in (a, b, up)]
                name = f"corner_pool {str(dtype)[6:]} {layout} {shape}"
                # Sums of a whole line.
                tolerance = 100 * TOLERANCE[dtype]
                for direction, (dim, from_end) in SCANS.items():
                    cpu = ops.corner_pool(a, direction).nan_to_num()
                    with no_synchronisation():
                        got = ops.corner_pool(device[0], direction).nan_to_num()
                        got_back = BACKWARD(device[2], device[0], dim, from_end)
                    yield f"{name} {direction}", difference(got, cpu), 0.0
                    cpu = BACKWARD(up, a, dim, from_end)
                    yield f"{name} {direction} backward", difference(got_back, cpu), tolerance
                for from_end in (False, True):
                    pair = torch.ops.d2proj.corner_pool_pair
                    cpu = pair(b, a, from_end).nan_to_num()
                    got = pair(device[1], device[0], from_end).nan_to_num()
                    yield f"{name} pair", difference(got, cpu), TOLERANCE[dtype] * 10
                    cpus = PAIR_BACKWARD(up, a, b, from_end)
                    gots = PAIR_BACKWARD(device[2], device[0], device[1], from_end)
                    for x, y in zip(gots, cpus, strict=True):
                        yield f"{name} pair backward", difference(x, y), tolerance


def gpu_times() -> Iterator[Timing]:
    """CornerNet's map in a training batch."""
    for layout in ("nchw", "nhwc"):
        for dtype in (torch.float32, torch.float16):
            a = in_layout(torch.randn(16, 128, 128, 128).to("cuda", dtype), layout)
            a.requires_grad_()
            x = a.detach()
            name = f"corner_pool {layout} {str(dtype)[6:]}"
            for direction in ("top", "left"):
                graph = by_cummax(a, direction)
                yield (
                    f"{name} {direction} forward",
                    lambda x=x, d=direction: ops.corner_pool(x, d),
                    lambda x=x, d=direction: by_cummax(x, d),
                    2 * size_of(x),
                )
                yield (
                    f"{name} {direction} backward",
                    lambda x=x, r=SCANS[direction]: BACKWARD(x, x, *r),
                    lambda o=graph, a=a: back(o, a),
                    3 * size_of(x),
                )
            yield (
                f"{name} pair forward",
                lambda x=x: ops.corner_pool_pair(x, x, "top_left"),
                lambda x=x: pair_by_cummax(x, x),
                3 * size_of(x),
            )
