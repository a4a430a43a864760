"""spatial_pyramid_pool: 1, 2, 3 and 6 bins a side, against torchvision's roi_pool to each."""

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
from benchmarks.op_cases.roi_align import touched
from d2proj import ops
from d2proj.utils import testing
from d2proj.utils.testing import FLOATING, TOLERANCE, in_layout

BINS = (1, 2, 3, 6)


def by_torchvision(input: Tensor, rois: Tensor, scale: float) -> Tensor:
    """What a user of torchvision would write."""
    return torch.cat([torchvision.ops.roi_pool(input, rois, b, scale).flatten(1) for b in BINS], 1)


def cpu_cases(quick: bool) -> Iterator[Case]:
    """SPPNet's 2000 proposals on a map of stride 16, fewer, and a larger map."""
    shapes = [  # boxes, images, channels, side of the map, stride, layout
        (2000, 1, 256, 38, 16, "nchw"),
        (2000, 1, 256, 38, 16, "nhwc"),
        (512, 2, 256, 100, 8, "nchw"),
        (100, 1, 8, 50, 16, "nchw"),
        (1, 1, 1, 20, 16, "nchw"),
    ]
    for k, n, c, side, stride, layout in shapes[:1] if quick else shapes:
        input = in_layout(torch.randn(n, c, side, side), layout)
        rois = random_rois(k, n, side * stride)
        name = f"{k} boxes, {n}x{c}x{side}x{side} {layout}"
        args = (input, rois, 1 / stride)
        output, argmax = torch.ops.d2proj.spatial_pyramid_pool(input, rois, BINS, 1 / stride, True)
        yield Case(
            f"spatial_pyramid_pool forward: {name}",
            lambda a=(input, rois, BINS, 1 / stride): ops.spatial_pyramid_pool(*a),
            lambda a=args: by_torchvision(*a),
            "torchvision, 4 calls",
            touched(input, rois, 1 / stride) + size_of(output),
        )
        leaf = input.clone().requires_grad_()
        ours = ops.spatial_pyramid_pool(leaf, rois, BINS, 1 / stride)
        peer = by_torchvision(leaf, rois, 1 / stride)
        grad = torch.randn_like(output)
        yield Case(
            f"spatial_pyramid_pool backward: {name}",
            lambda a=(ours, leaf, grad): torch.autograd.grad(*a, retain_graph=True),
            lambda a=(peer, leaf, grad): torch.autograd.grad(*a, retain_graph=True),
            "torchvision, 4 calls",
            size_of(input, grad, argmax),
        )


def memory_cases() -> Iterator[MemoryCase]:
    """8 bytes a bin row or column of a box, and 64 a pixel and thread; backward nothing."""
    input, rois = torch.randn(2, 64, 100, 100), random_rois(512, 2, 800)
    bound = 512 * 8 * 24 * 2 + torch.get_num_threads() * (64 * 100 * 100 + 50 * 128 * 4) + (1 << 17)
    yield MemoryCase(
        "spatial_pyramid_pool forward",
        lambda: ops.spatial_pyramid_pool(input, rois, BINS, 0.125),
        bound,
    )
    output, argmax = torch.ops.d2proj.spatial_pyramid_pool(input, rois, BINS, 0.125, True)
    args = (output, rois, argmax, BINS, 0.125, *input.shape, False, False)
    yield MemoryCase(
        "spatial_pyramid_pool backward",
        lambda: torch.ops.d2proj._spatial_pyramid_pool_backward(*args),
        1 << 17,
    )


def gpu_checks() -> Iterator[Check]:
    """Forward and argmax to the bit, backward, deterministic backward, against the CPU kernel."""
    g = torch.Generator().manual_seed(0)
    for dtype in FLOATING:
        for layout in ("nchw", "nhwc", "sliced"):
            for channels in (1, 21, 64):
                input = (torch.randn(3, channels, 25, 33, generator=g) * 4).round().to(dtype)
                rois = testing.random_rois(100, 3, 70, generator=g)
                input = in_layout(input, layout)
                device_input, device_rois = in_layout(input.cuda(), layout), rois.cuda()
                name = f"spatial_pyramid_pool {str(dtype)[6:]} {layout} C={channels}"
                op = torch.ops.d2proj.spatial_pyramid_pool
                cpu = op(input, rois, BINS, 0.5, True)
                with no_synchronisation():
                    got = op(device_input, device_rois, BINS, 0.5, True)
                yield name, difference(got[0], cpu[0]), 0.0
                yield f"{name} argmax", difference(got[1], cpu[1]), 0.0
                grad = torch.randn(cpu[0].shape, generator=g).to(dtype)
                rest = (BINS, 0.5, *input.shape, layout == "nhwc")
                backward = torch.ops.d2proj._spatial_pyramid_pool_backward
                expected = backward(grad, rois, cpu[1], *rest, False)
                device_grad = grad.cuda()
                with no_synchronisation():
                    sums = backward(device_grad, device_rois, got[1], *rest, False)
                    fixed = backward(device_grad, device_rois, got[1], *rest, True)
                # Sums of many terms: the rounding grows with them.
                tolerance = 40 * TOLERANCE[dtype]
                yield f"{name} backward", difference(sums, expected), tolerance
                yield f"{name} backward, deterministic", difference(fixed, expected), tolerance


def gpu_times() -> Iterator[Timing]:
    """SPPNet's 2000 proposals, both layouts."""
    g = torch.Generator().manual_seed(0)
    for layout in ("nchw", "nhwc"):
        input = in_layout(torch.randn(1, 256, 38, 38, generator=g).cuda(), layout)
        rois = random_rois(2000, 1, 608).cuda()
        output = ops.spatial_pyramid_pool(input, rois, BINS, 1 / 16)
        yield (
            f"spatial_pyramid_pool {layout} forward",
            lambda a=(input, rois, BINS, 1 / 16): ops.spatial_pyramid_pool(*a),
            lambda a=(input, rois, 1 / 16): by_torchvision(*a),
            size_of(input, output),
        )
