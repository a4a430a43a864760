"""roi_align: 7 x 7 bins, 2 x 2 samples, stride 4, against torchvision."""

from collections.abc import Iterator

import torch
import torchvision
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
from d2proj import ops
from d2proj.utils import testing
from d2proj.utils.testing import FLOATING, TOLERANCE, in_layout


def touched(input: Tensor, rois: Tensor, scale: float) -> int:
    """Bytes of a map that boxes cover: what an ideal roi_align would read."""
    n, c, h, w = input.shape
    mask = torch.zeros(n, h, w, dtype=torch.bool)
    for i, x1, y1, x2, y2 in rois.tolist():
        rows = slice(max(0, int(y1 * scale)), int(y2 * scale) + 2)
        mask[int(i), rows, max(0, int(x1 * scale)) : int(x2 * scale) + 2] = True
    return int(mask.sum()) * c * input.element_size()


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Large and small maps, both layouts."""
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


def memory_cases() -> Iterator[MemoryCase]:
    """The plan (16 bytes a tap) and a buffer of 64 bytes a touched pixel and thread."""
    input, rois = torch.randn(2, 64, 200, 200), random_rois(512, 2, 800)
    threads = torch.get_num_threads()
    bound = 512 * 1500 + threads * 64 * 200 * 200
    output = ops.roi_align(input, rois, 7, 0.25, 2, True)
    yield MemoryCase(
        "roi_align forward", lambda: ops.roi_align(input, rois, 7, 0.25, 2, True), bound
    )
    args = (output, rois, 0.25, 7, 7, *input.shape, 2, True, False, False)
    yield MemoryCase(
        "roi_align backward", lambda: torch.ops.d2proj._roi_align_backward(*args), bound
    )


def gpu_checks() -> Iterator[Check]:
    """Forward, backward, deterministic backward, against the CPU kernel."""
    g = torch.Generator().manual_seed(0)
    for dtype in FLOATING:
        for layout in ("nchw", "nhwc", "sliced"):
            for channels in (1, 21, 64):
                for ratio, aligned in ((2, True), (-1, False)):
                    options = (0.5, 7, 3)
                    input = torch.randn(3, channels, 25, 33, generator=g).to(dtype)
                    rois = testing.random_rois(100, 3, 70, generator=g)
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


def gpu_times() -> Iterator[Timing]:
    """The shapes of specs/ops.md, both layouts, three dtypes."""
    g = torch.Generator().manual_seed(0)
    for layout in ("nchw", "nhwc"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            input = in_layout(torch.randn(2, 256, 200, 200, generator=g).to("cuda", dtype), layout)
            rois = random_rois(512, 2, 800).cuda()
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
