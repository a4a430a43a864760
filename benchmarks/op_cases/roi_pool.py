"""roi_pool: 7 x 7 bins, stride 4, against torchvision, with and without the argmax."""

from collections.abc import Iterator

import torch
import torchvision

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
from d2proj.utils import testing
from d2proj.utils.testing import FLOATING, TOLERANCE, in_layout


def cpu_cases(quick: bool) -> Iterator[Case]:
    """Large and small maps, few and many boxes, both layouts; torchvision always keeps argmax."""
    shapes = [  # boxes, images, channels, side of the map, layout, dtype
        (512, 2, 256, 200, "nchw", torch.float32),
        (512, 2, 256, 200, "nhwc", torch.float32),
        (512, 2, 256, 200, "nchw", torch.float64),
        (100, 1, 256, 50, "nchw", torch.float32),
        (1000, 1, 256, 100, "nchw", torch.float32),
        (20_000, 1, 4, 100, "nchw", torch.float32),
        (100, 1, 8, 200, "nchw", torch.float32),
        (10, 1, 1, 200, "nchw", torch.float32),
        (10, 1, 8, 200, "nchw", torch.float32),
        (10, 1, 8, 50, "nchw", torch.float32),
        (1, 1, 1, 20, "nchw", torch.float32),
    ]
    for k, n, c, side, layout, dtype in shapes[:1] if quick else shapes:
        input = in_layout(torch.randn(n, c, side, side, dtype=dtype), layout)
        rois = random_rois(k, n, side * 4).to(dtype)
        name = f"{k} boxes, {n}x{c}x{side}x{side} {layout} {str(dtype)[6:]}"
        args = (input, rois, 0.25, 7, 7)
        output, argmax = torch.ops.d2proj.roi_pool(*args, True)
        moved = touched(input, rois, 0.25) + size_of(output)
        yield Case(
            f"roi_pool forward: {name}",
            lambda a=(input, rois, 7, 0.25): ops.roi_pool(*a),
            lambda a=(input, rois, 7, 0.25): torchvision.ops.roi_pool(*a),
            "torchvision",
            moved,
        )
        yield Case(
            f"roi_pool forward with argmax: {name}",
            lambda a=args: torch.ops.d2proj.roi_pool(*a, True),
            lambda a=args: torch.ops.torchvision.roi_pool(*a),
            "torchvision",
            moved + size_of(argmax),
        )
        grad = torch.randn_like(output)
        # torchvision reads its argmax as NCHW.
        planar = argmax.contiguous()
        shape = (0.25, 7, 7, *input.shape)
        yield Case(
            f"roi_pool backward: {name}",
            lambda a=(grad, rois, argmax, *shape, layout == "nhwc", False): (
                torch.ops.d2proj._roi_pool_backward(*a)
            ),
            lambda a=(grad, rois, planar, *shape): torch.ops.torchvision._roi_pool_backward(*a),
            "torchvision",
            size_of(input, grad, argmax),
        )


def memory_cases() -> Iterator[MemoryCase]:
    """8 bytes a bin row or column of a box, and 64 a pixel and thread; backward nothing."""
    input, rois = torch.randn(2, 64, 200, 200), random_rois(512, 2, 800)
    bound = 512 * 8 * 14 * 2 + torch.get_num_threads() * (64 * 200 * 200 + 49 * 128 * 4) + (1 << 17)
    yield MemoryCase("roi_pool forward", lambda: ops.roi_pool(input, rois, 7, 0.25), bound)
    output, argmax = torch.ops.d2proj.roi_pool(input, rois, 0.25, 7, 7, True)
    args = (output, rois, argmax, 0.25, 7, 7, *input.shape, False, False)
    yield MemoryCase(
        "roi_pool backward", lambda: torch.ops.d2proj._roi_pool_backward(*args), 1 << 17
    )


def gpu_checks() -> Iterator[Check]:
    """Forward and argmax to the bit, backward, deterministic backward, against the CPU kernel."""
    g = torch.Generator().manual_seed(0)
    for dtype in FLOATING:
        for layout in ("nchw", "nhwc", "sliced"):
            for channels in (1, 21, 64):
                options = (0.5, 7, 3)
                input = (torch.randn(3, channels, 25, 33, generator=g) * 4).round().to(dtype)
                rois = testing.random_rois(100, 3, 70, generator=g)
                input = in_layout(input, layout)
                device_input, device_rois = in_layout(input.cuda(), layout), rois.cuda()
                name = f"roi_pool {str(dtype)[6:]} {layout} C={channels}"
                cpu = torch.ops.d2proj.roi_pool(input, rois, *options, True)
                with no_synchronisation():
                    got = torch.ops.d2proj.roi_pool(device_input, device_rois, *options, True)
                    alone = torch.ops.d2proj.roi_pool(device_input, device_rois, *options, False)
                yield name, difference(got[0], cpu[0]), 0.0
                yield f"{name} argmax", difference(got[1], cpu[1]), 0.0
                yield f"{name} without argmax", difference(alone[0], cpu[0]), 0.0
                grad = torch.randn(cpu[0].shape, generator=g).to(dtype)
                rest = (*options, *input.shape, layout == "nhwc")
                backward = torch.ops.d2proj._roi_pool_backward
                expected = backward(grad, rois, cpu[1], *rest, False)
                device_grad = grad.cuda()
                with no_synchronisation():
                    sums = backward(device_grad, device_rois, got[1], *rest, False)
                    fixed = backward(device_grad, device_rois, got[1], *rest, True)
                    again = backward(device_grad, device_rois, got[1], *rest, True)
                # Sums of many terms: the rounding grows with them.
                tolerance = 40 * TOLERANCE[dtype]
                yield f"{name} backward", difference(sums, expected), tolerance
                yield f"{name} backward, deterministic", difference(fixed, expected), tolerance
                yield f"{name} backward, deterministic, twice", difference(fixed, again), 0.0
    nan, inf = float("nan"), float("inf")
    strange = torch.tensor(
        [[0, nan, 0, 1, 1], [0, 0, 0, inf, 1], [9, 0, 0, 4, 4], [-1, 0, 0, 4, 4]]
    )
    input = torch.ones(1, 8, 6, 6, device="cuda")
    output = ops.roi_pool(input, strange.cuda(), 3)
    yield "roi_pool: strange boxes pool to zero", difference(output, output * 0), 0.0
    input[0, :, 2:4] = nan
    whole = torch.tensor([[0.0, 0, 0, 5, 5], [0, -1e30, -1e30, 1e30, 1e30]])
    cpu = ops.roi_pool(input.cpu(), whole, 3)
    yield (
        "roi_pool: NaN cells, huge boxes",
        difference(ops.roi_pool(input, whole.cuda(), 3), cpu),
        0.0,
    )


def gpu_times() -> Iterator[Timing]:
    """The shapes of specs/ops.md, both layouts, three dtypes."""
    g = torch.Generator().manual_seed(0)
    for layout in ("nchw", "nhwc"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            input = in_layout(torch.randn(2, 256, 200, 200, generator=g).to("cuda", dtype), layout)
            rois = random_rois(512, 2, 800).cuda()
            # torchvision has no bfloat16 and wants boxes in the features' dtype.
            peer_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
            peer = (input.to(peer_dtype), rois.to(peer_dtype), 0.25, 7, 7)
            args = (input, rois, 0.25, 7, 7)
            name = f"roi_pool {layout} {str(dtype)[6:]}"
            output, argmax = torch.ops.d2proj.roi_pool(*args, True)
            moved = size_of(input, output)
            for kept in (False, True):
                yield (
                    f"{name} forward{' with argmax' if kept else ''}",
                    lambda a=(*args, kept): torch.ops.d2proj.roi_pool(*a),
                    lambda a=peer: torch.ops.torchvision.roi_pool(*a),
                    moved + kept * size_of(argmax),
                )
            grad = torch.randn_like(output)
            shape = (0.25, 7, 7, *input.shape)
            peer_grad, planar = grad.to(peer_dtype), argmax.contiguous()
            yield (
                f"{name} backward",
                lambda a=(grad, rois, argmax, *shape, layout == "nhwc", False): (
                    torch.ops.d2proj._roi_pool_backward(*a)
                ),
                lambda a=(peer_grad, peer[1], planar, *shape): (
                    torch.ops.torchvision._roi_pool_backward(*a)
                ),
                moved + size_of(argmax),
            )
