"""roi_align_rotated: 7 x 7 bins, stride 4, against Detectron2's op (its CUDA-less build: CPU)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.op_cases.common import (
    Case,
    Check,
    MemoryCase,
    Timing,
    difference,
    no_synchronisation,
    random_rois,
    size_of,
)
from benchmarks.op_cases.roi_align import touched
from d2proj import ops
from d2proj.ops import reference
from d2proj.utils.testing import FLOATING, TOLERANCE, in_layout


def random_rotated(count: int, images: int, size: float) -> Tensor:
    """(count, 6) boxes of every angle with sides of 8 to 300 in a ``size`` square."""
    rois = random_rois(count, images, size)
    center, sides = (rois[:, 1:3] + rois[:, 3:]) / 2, rois[:, 3:] - rois[:, 1:3]
    return torch.cat([rois[:, :1], center, sides, torch.rand(count, 1) * 360 - 180], 1)


def peer() -> tuple[str, Callable[..., Any], Callable[..., Any] | None]:
    """Detectron2's forward and backward, or the twin and nothing where it is not installed."""
    try:
        import detectron2._C  # noqa: F401

        library = torch.ops.detectron2
        return "Detectron2", library.roi_align_rotated_forward, library.roi_align_rotated_backward
    except (ImportError, AttributeError):
        return "twin", _twin, None


def _twin(input: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int) -> Tensor:
    return reference.roi_align_rotated.roi_align_rotated(input, rois, (height, width), scale, ratio)


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Large and small maps, both layouts, fixed and adaptive sampling."""
    shapes = [  # boxes, images, channels, side of the map, layout, dtype, sampling_ratio
        (512, 2, 256, 200, "nchw", torch.float32, 2),
        (512, 2, 256, 200, "nchw", torch.float32, 0),
        (512, 2, 256, 200, "nhwc", torch.float32, 2),
        (512, 2, 256, 200, "nchw", torch.float64, 2),
        (100, 1, 256, 50, "nchw", torch.float32, 2),
        (10, 1, 8, 200, "nchw", torch.float32, 2),
        (10, 1, 8, 50, "nchw", torch.float32, 2),
    ]
    name, forward, backward = peer()
    for k, n, c, side, layout, dtype, ratio in shapes[:1] if quick else shapes:
        input = in_layout(torch.randn(n, c, side, side, dtype=dtype), layout)
        rois = random_rotated(k, n, side * 4).to(dtype)
        what = f"{k} boxes, {n}x{c}x{side}x{side} {layout} {str(dtype)[6:]} ratio {ratio}"
        output = ops.roi_align_rotated(input, rois, 7, 0.25, ratio)
        args = (input, rois, 0.25, 7, 7, ratio)
        half = rois[:, 3:5] / 2
        upright = torch.cat([rois[:, :1], rois[:, 1:3] - half, rois[:, 1:3] + half], 1)
        yield Case(
            f"roi_align_rotated forward: {what}",
            lambda a=args: torch.ops.d2proj.roi_align_rotated(*a),
            lambda a=args: forward(*a),
            name,
            touched(input, upright, 0.25) + size_of(output),
        )
        if backward is None:
            continue
        rest = (torch.randn_like(output), rois, 0.25, 7, 7, *input.shape, ratio)
        yield Case(
            f"roi_align_rotated backward: {what}",
            lambda a=(*rest, layout == "nhwc", False): torch.ops.d2proj._roi_align_rotated_backward(
                *a
            ),
            lambda a=rest: backward(*a),
            name,
            size_of(input, output),
        )


def memory_cases() -> Iterator[MemoryCase]:
    """A round of the plan, 64 bytes a sample, and 64 bytes a touched pixel and thread."""
    input, rois = torch.randn(2, 64, 200, 200), random_rotated(512, 2, 800)
    threads = torch.get_num_threads()
    bound = 64 * 2**20 + threads * 64 * 200 * 200 + 2**20
    output = ops.roi_align_rotated(input, rois, 7, 0.25, 0)
    yield MemoryCase(
        "roi_align_rotated forward", lambda: ops.roi_align_rotated(input, rois, 7, 0.25, 0), bound
    )
    args = (output, rois, 0.25, 7, 7, *input.shape, 0, False, False)
    yield MemoryCase(
        "roi_align_rotated backward",
        lambda: torch.ops.d2proj._roi_align_rotated_backward(*args),
        bound,
    )


def gpu_checks() -> Iterator[Check]:
    """Forward, backward, deterministic backward, against the CPU kernel."""
    torch.manual_seed(0)
    forward = torch.ops.d2proj.roi_align_rotated
    backward = torch.ops.d2proj._roi_align_rotated_backward
    for dtype in FLOATING:
        for layout in ("nchw", "nhwc", "sliced"):
            for channels in (1, 21, 64):
                for ratio in (0, 2):
                    input = in_layout(torch.randn(3, channels, 25, 33).to(dtype), layout)
                    rois = random_rotated(100, 3, 70)
                    device_input, device_rois = in_layout(input.cuda(), layout), rois.cuda()
                    options = (0.5, 7, 3)
                    name = f"roi_align_rotated {str(dtype)[6:]} {layout} C={channels} ratio={ratio}"
                    cpu = forward(input, rois, *options, ratio)
                    with no_synchronisation():
                        got = forward(device_input, device_rois, *options, ratio)
                    yield name, difference(got, cpu), 10 * TOLERANCE[dtype]
                    grad = torch.randn(cpu.shape).to(dtype)
                    rest = (*options, *input.shape, ratio, layout == "nhwc")
                    cpu = backward(grad, rois, *rest, False)
                    tolerance = 80 * TOLERANCE[dtype]
                    device_grad = grad.cuda()
                    with no_synchronisation():
                        got = backward(device_grad, device_rois, *rest, False)
                        fixed = backward(device_grad, device_rois, *rest, True)
                        again = backward(device_grad, device_rois, *rest, True)
                    yield f"{name} backward", difference(got, cpu), tolerance
                    yield f"{name} backward, deterministic", difference(fixed, cpu), tolerance
                    yield f"{name} backward, deterministic, twice", difference(fixed, again), 0.0
    nan, inf = float("nan"), float("inf")
    strange = [[0, nan, 0, 1, 1, 0], [0, 0, 0, inf, 1, 0], [9, 2, 2, 4, 4, 0], [0, 2, 2, -4, 4, 0]]
    input = torch.ones(1, 8, 6, 6, device="cuda")
    output = ops.roi_align_rotated(input, torch.tensor(strange).cuda(), 3, 1.0, 0)
    yield "roi_align_rotated: strange boxes pool to zero", difference(output, output * 0), 0.0
    huge = torch.tensor([[0, 1e9, 1e9, 1e30, 1e30, 45], [0, 3, 3, 1e9, 3.0, 30]]).cuda()
    output = ops.roi_align_rotated(input, huge, 3, 1.0, 0)
    yield "roi_align_rotated: huge boxes are finite", float(not output.isfinite().all()), 0.0


def gpu_times() -> Iterator[Timing]:
    """The shapes of roi_align's row; the peer is roi_align of boxes as large (no other CUDA op)."""
    torch.manual_seed(0)
    for layout in ("nchw", "nhwc"):
        for dtype in (torch.float32, torch.float16):
            input = in_layout(torch.randn(2, 256, 200, 200).to("cuda", dtype), layout)
            rois = random_rotated(512, 2, 800).cuda()
            half = rois[:, 3:5] / 2
            upright = torch.cat([rois[:, :1], rois[:, 1:3] - half, rois[:, 1:3] + half], 1)
            output = ops.roi_align_rotated(input, rois, 7, 0.25, 2)
            moved = size_of(input, output)
            name = f"roi_align_rotated {layout} {str(dtype)[6:]}"
            yield (
                f"{name} forward",
                lambda a=(input, rois, 7, 0.25, 2): ops.roi_align_rotated(*a),
                lambda a=(input, upright, 7, 0.25, 2, True): ops.roi_align(*a),
                moved,
            )
            grad, rest = torch.randn_like(output), (0.25, 7, 7, *input.shape, 2)
            last = layout == "nhwc"
            yield (
                f"{name} backward",
                lambda a=(grad, rois, *rest, last, False): (
                    torch.ops.d2proj._roi_align_rotated_backward(*a)
                ),
                lambda a=(grad, upright, *rest, True, last, False): (
                    torch.ops.d2proj._roi_align_backward(*a)
                ),
                moved,
            )
